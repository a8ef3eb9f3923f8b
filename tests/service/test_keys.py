"""Who may ask, and how much."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fvit.errors import FvitError
from fvit.service.keys import Keys, new_key
from tests.service.conftest import Serving, problem

COMMAND = [sys.executable, "-c", "from fvit.commands import serve; serve()"]


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_key_is_shown_once_and_kept_as_a_salted_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    made = [run("key", file, name).stdout.strip() for name in ("anna", "otto")]
    assert len(set(made)) == 2
    assert all(len(key) >= 43 for key in made)
    text = file.read_text()
    assert not any(key in text for key in made)
    assert re.fullmatch(r"anna [0-9a-f]{32} [0-9a-f]{64}\notto [0-9a-f]{32} [0-9a-f]{64}\n", text)
    assert file.stat().st_mode & 0o077 == 0
    known = Keys(file, on_error=print)
    assert [known.name_of(key) for key in (*made, "", made[0] + "x", made[0][:-1])] == [
        "anna", "otto", None, None, None,
    ]  # fmt: skip
    assert "has a key named anna" in run("key", file, "anna").stderr
    assert "no name" in run("key", file, "a b").stderr
    assert "/dev/null is no regular file" in run("key", "/dev/null", "anna").stderr


def test_a_broken_file_of_keys_is_refused_and_later_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(FvitError, match="no file of keys"):
        Keys(file, on_error=print)
    file.write_text("# nobody\n")
    with pytest.raises(FvitError, match="holds no key"):
        Keys(file, on_error=print)
    key = new_key(file, name="anna")
    told: list[str] = []
    known = Keys(file, on_error=told.append)
    whole = file.read_text()
    file.write_text("broken\n")
    assert [known.name_of(key), known.name_of(key)] == ["anna", "anna"]
    (said,) = told
    assert "line 1" in said
    file.write_text(whole + "# and nobody else\n")
    assert known.name_of(key) == "anna"
    file.write_text("# nobody any more\n")
    assert known.name_of(key) is None
    assert told == [said]


def test_only_who_has_a_key_may_ask_and_keys_change_without_a_restart(
    serve: Callable[..., Serving], tmp_path: Path, samples: list[Path]
) -> None:
    file = tmp_path / "keys"
    key = new_key(file, name="anna")
    service = serve("--keys", str(file), "--requests-a-minute", "5", "--copies-a-minute", "60")

    def ask(key: str | None, path: str = "/v1/predict?n=12") -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer = service.client.post(path, content=samples[0].read_bytes(), headers=headers)
        if answer.status_code == 401:
            problem(answer, 401, "key-needed")
            assert answer.headers["www-authenticate"] == "Bearer"
        if answer.status_code == 429:
            problem(answer, 429, "over-limit")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        return answer.status_code

    assert [ask(None), ask("wrong"), ask(key)] == [401, 401, 200]
    for path in ("/v1/models", "/metrics"):
        assert service.client.get(path).status_code == 401
    for path in ("/", "/healthz", "/readyz", "/openapi.json"):
        assert service.client.get(path).status_code == 200
    # Before a body is looked at or terms are.
    assert ask(None, "/v1/certify?sgima=1") == 401
    other = new_key(file, name="otto")
    assert [ask(other), ask(other, "/v1/certify?n=61"), ask(other, "/v1/certify?n=55")] == [200, 422, 429]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[1])
    os.utime(file)
    assert [ask(key), ask(other)] == [401, 200]
    assert [ask(other) for _ in range(4)][-1] == 429
    line = service.wait_for(lambda line: line.get("key") == "otto")
    assert line["status"] == 200
    assert not any(each in str(service.lines) for each in (key, other))


def test_without_keys_nobody_beyond_this_machine_may_ask(demo_bundle: Path) -> None:
    done = run(demo_bundle, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: without keys anybody who reaches 0.0.0.0 may ask")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["a=x", "a=y"], "two models are named a"),
        (["a b=x"], "no name for a model"),
        (["x", "--batch", "many"], "--batch is 'many'"),
        (["x", "--host", "host.invalid"], "without keys"),
        (["x", "--keys", "nowhere"], "no file of keys"),
        (["x", "--keys", "/dev/zero"], "is a device"),
    ],
)
def test_a_service_that_cannot_start_says_why_in_one_line(arguments: list[str], said: str) -> None:
    done = run(*arguments, "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_says_so(service: Serving, demo_bundle: Path) -> None:
    done = run(demo_bundle, "--port", str(service.port))
    assert done.returncode == 1
    assert f"port {service.port} of 127.0.0.1 cannot be had" in done.stderr


def test_without_the_extra_the_command_names_it() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from fvit.commands import serve; serve()"
    done = subprocess.run([sys.executable, "-c", code, "bundle"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'fvit[serve]'" in done.stderr
