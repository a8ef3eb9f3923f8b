import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier, class_labels, class_named, load_classifier
from fvit.export.explanations import EXPLANATIONS, OF_LAST_BLOCK
from fvit.export.graphs import export_graph
from tests.export.families import SEQUENCES, build

# What is traced differs by family and by what an explanation needs, not by its last few operators.
EXPORTED = [
    *itertools.product(SEQUENCES, ["rollout", "gradient-rollout"]),
    *itertools.product(["eva02", "dinov2-registers"], ["transformer-attribution"]),
    ("vit", "attention"), ("vit", "gradient-attention"),
    ("deit-distilled", "gradcam"), ("deit-distilled", "lrp"), ("deit-distilled", "attribution-rollout"),
    ("swin", "attention"), ("swin-shifted-padded", "gradcam"), ("swin-shifted-padded", "lrp"),
    ("swinv2", "gradcam"), ("swinv2", "lrp"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "explanation"), EXPORTED)
def test_each_family_exports_and_equals_torch(family: str, explanation: str, tmp_path: Path) -> None:
    explained = ExplainedClassifier(build(family), explanation=explanation)
    images = torch.rand(5, 3, *explained.size, generator=torch.Generator().manual_seed(0))
    error = export_graph(
        explained,
        {"images": images},
        outputs=("logits", "attribution"),
        graph=tmp_path / "c.onnx",
        backward=explained.needs_gradients,
    )
    assert error <= 1e-4
    with torch.no_grad():
        _, attribution = explained(images)
    assert attribution.shape == (5, explained.grid[0] * explained.grid[1])
    assert np.allclose(attribution.sum(dim=1), 1, atol=1e-5)


def test_a_graph_explains_the_class_that_was_asked_for(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    found = {}
    for label in (None, 5):
        explained = ExplainedClassifier(build("vit"), explanation="gradcam", explained=label)
        graph = tmp_path / f"{label}.onnx"
        export_graph(
            explained, {"images": images}, outputs=("logits", "attribution"), graph=graph, backward=True
        )
        found[label] = open_engine(graph, device="cpu").run({"images": images.numpy()})
        with torch.no_grad():
            _, expected = explained(images)
        assert np.abs(found[label]["attribution"] - expected.numpy()).max() <= 1e-4 * float(expected.max())
    assert np.allclose(found[None]["logits"], found[5]["logits"], rtol=1e-4, atol=1e-4)
    assert np.abs(found[None]["attribution"] - found[5]["attribution"]).max() > 0.01


def test_explaining_leaves_the_logits_alone() -> None:
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = build("deit-distilled")((images - 0.5) / 0.5)
        config = build("deit-distilled")
        config.pretrained_cfg = dict(config.pretrained_cfg) | {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        explained, _ = ExplainedClassifier(config)(images)
    assert torch.allclose(plain, explained, rtol=1e-4, atol=1e-4)


def test_models_that_cannot_be_explained_are_refused_with_what_can() -> None:
    with pytest.raises(FvitError, match=r"resnet18 is no model.*ViT, DeiT"):
        ExplainedClassifier(timm.create_model("resnet18"))
    with pytest.raises(FvitError, match="vit_tiny_patch16_224 has no classification head"):
        ExplainedClassifier(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1))
    with pytest.raises(FvitError, match="attention, rollout, gradient-attention, gradcam"):
        ExplainedClassifier(build("vit"), explanation="guess")


@pytest.mark.parametrize("explanation", EXPLANATIONS)
def test_what_a_model_lacks_is_said_with_its_name_and_the_reason(explanation: str) -> None:
    small = {"depth": 1, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
    pooled = timm.create_model("vit_base_patch16_siglip_224", **small)
    with pytest.raises(FvitError, match="vit_base_patch16_siglip_224 pools its tokens by an attention"):
        ExplainedClassifier(pooled, explanation=explanation)
    parallel = timm.create_model("vit_small_patch16_18x2_224", **small)
    with pytest.raises(FvitError, match="vit_small_patch16_18x2_224 has no attention map.*ParallelThings"):
        ExplainedClassifier(parallel, explanation=explanation)
    if explanation not in OF_LAST_BLOCK:
        with pytest.raises(FvitError, match="swin_tiny_patch4_window7_224 merges tokens.*use one of atten"):
            ExplainedClassifier(build("swin"), explanation=explanation)


@pytest.mark.parametrize("family", ["beit", "eva02", "dinov3"])
def test_attribution_rollout_needs_a_class_token_that_the_head_reads(family: str) -> None:
    with pytest.raises(FvitError, match="reads the patches: use gradient-rollout"):
        ExplainedClassifier(build(family), explanation="attribution-rollout")


def test_a_class_to_explain_must_be_one_and_make_a_difference() -> None:
    with pytest.raises(FvitError, match="class 7 cannot be explained: .* has 7 classes"):
        ExplainedClassifier(build("swin"), explanation="gradcam", explained=7)
    with pytest.raises(FvitError, match="rollout is the same for every class: use one of gradient-attention"):
        ExplainedClassifier(build("vit"), explanation="rollout", explained=0)


def test_a_class_is_named_by_its_label_or_its_index() -> None:
    labels = ["cat", "1", "crane, bird", "crane, machine"]
    assert class_named(labels, "cat") == 0
    assert class_named(labels, "crane, machine") == 3
    assert class_named(labels, "1") == 1
    assert class_named(labels, "3") == 3
    with pytest.raises(FvitError, match="classes 2, 3 are all called 'crane': give an index"):
        class_named(labels, "crane")
    with pytest.raises(FvitError, match="no class is called 'cats': did you mean cat?"):
        class_named(labels, "cats")
    for other in ("4", "-1", "9" * 9_999, "²"):
        with pytest.raises(FvitError, match="use a label or an index below 4"):
            class_named(labels, other)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(FvitError, match="did you mean vit_tiny_patch16_224"):
        load_classifier("vit_tiny_patch16_225")


def test_a_local_checkpoint_brings_its_own_number_of_classes(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    save_file(model.state_dict(), tmp_path / "five.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "five.pth"
    )
    for name in ("five.safetensors", "five.pth"):
        loaded = load_classifier("vit_tiny_patch16_224", weights=tmp_path / name)
        assert loaded.num_classes == 5
        assert torch.equal(loaded.state_dict()["head.weight"], model.state_dict()["head.weight"])


def test_weights_that_do_not_fit_show_the_first_mismatches(tmp_path: Path) -> None:
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(FvitError, match=r"does not fit.*instead of.*and \d+ more"):
        load_classifier("vit_tiny_patch16_224", weights=tmp_path / "small.safetensors")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_a_pickled_file_with_code_in_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, write in (("a.pth", torch.save), ("b.pth", lambda o, f: f.write_bytes(pickle.dumps(o)))):
        write({"state_dict": Malicious()}, tmp_path / name)
        with pytest.raises(FvitError, match="refused|cannot be read"):
            load_classifier("vit_tiny_patch16_224", weights=tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


def test_labels_are_counted(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    assert class_labels(model, file=tmp_path / "labels.txt") == ("cat", "dog", "bird")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(FvitError, match="2 labels, but the model has 3 classes"):
        class_labels(model, file=tmp_path / "labels.txt")
    with pytest.raises(FvitError, match="/dev/zero is a device"):
        class_labels(model, file=Path("/dev/zero"))
    assert class_labels(model, file=None) == ("0", "1", "2")
    assert "tench" in class_labels(timm.create_model("vit_tiny_patch16_224", depth=1), file=None)[0]
