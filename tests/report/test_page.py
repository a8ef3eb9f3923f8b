"""The page as text: its scripts in one, and nothing of a record in its HTML."""

import re
from base64 import b64encode
from hashlib import sha256

from fvit.report.page import bundled, page_around


def test_modules_become_one_script_each_before_those_that_import_it() -> None:
    script = bundled(
        "main.js",
        {
            "main.js": 'import * as a from "./a.js";\nimport * as b from "./b.js";\na.say(b.word);\n',
            "a.js": 'import * as deep from "./b.js";\nexport function say(what) { deep.wait(what); }\n',
            "b.js": 'export const word = "b";\nexport async function wait() {}\n',
        },
    )
    assert "import" not in script and "export" not in script
    places = [script.index(f'modules["{name}"] = ') for name in ("b.js", "a.js", "main.js")]
    assert places == sorted(places)
    assert script.count('modules["b.js"] = ') == 1
    assert "return { word, wait };" in script and 'const deep = modules["b.js"];' in script


def test_only_the_pages_own_style_and_script_are_allowed_and_nothing_from_elsewhere() -> None:
    page = "".join(page_around("a folder", {"a": 1}, ["x\ny", "z"]))
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'")
    for tag, directive in (("style", "style-src"), ('script type="module"', "script-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag.partition(' ')[0]}>", page, re.DOTALL)
        assert f"{directive} 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy[1]
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+/?[^\s\"'`]*", page) == ["http://www.w3.org/2000/svg"]
    assert '<script type="text/plain" id="chunk-0">x\ny</script>' in page
    assert '<script type="text/plain" id="chunk-1">z</script>' in page


def test_a_title_is_text() -> None:
    page = "".join(page_around("<img src=x onerror=alert(1)>\ud800", {}, []))
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    page.encode()
