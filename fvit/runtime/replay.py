"""Replay: draw a recorded certificate again and say what came out the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvit.certificates.record import terms_of
from fvit.errors import FvitError
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import Picture
from fvit.runtime.journal import parsed

NOT_COMPARED = ("image", "engine", "bundle", "seconds")
"""What a record says of where it was made, not of what holds."""


@dataclass(frozen=True)
class Replay:
    """How a recorded certificate fared. identical: counts, tokens and radii, every digit.
    copies_moved: by how many the copies counted for the recorded class differ (None where this
    engine selects another class). holds: this engine certifies the same class and explanation, at
    the recorded radii or larger. found: the record that came out."""

    identical: bool
    copies_moved: int | None
    holds: bool
    found: dict[str, Any]


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a certificates.jsonl. Raises FvitError where it cannot be read or holds none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FvitError(f"{file} cannot be read: {error}") from error
    if not lines:
        raise FvitError(f"{file} holds no record")
    return [parsed(line, file=file, number=number) for number, line in enumerate(lines, 1)]


def replay(vit: FaithfulViT, record: dict[str, Any], picture: Picture) -> Replay:
    """Certify the picture again on the record's own terms, and compare.

    The engine must run the recorded batch size for the last digit to agree. Raises FvitError where
    this bundle cannot meet the terms, or the picture is another one.
    """
    if picture.sha256 != record["sha256"]:
        raise FvitError(f"{picture.name} is not the image of the record: its SHA-256 differs")
    terms = terms_of(record)
    vit.check(terms)
    found = next(vit.certify_many([picture], terms)).to_dict()
    of_class, again = record["class"], found["class"]
    attention, attention_again = record["attention"], found["attention"]
    same_class = of_class["index"] == again["index"]
    return Replay(
        identical=_claims(record) == _claims(found),
        copies_moved=abs(of_class["count"] - again["count"]) if same_class else None,
        holds=(of_class["abstained"] or (same_class and again["radius_l2"] >= of_class["radius_l2"]))
        and (
            attention["abstained"]
            or (
                set(attention["tokens"]) == set(attention_again["tokens"])
                and attention_again["radius_l2"] >= attention["radius_l2"]
            )
        ),
        found=found,
    )


def _claims(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in NOT_COMPARED}
