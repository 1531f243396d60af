"""Links between pages lead somewhere, and the documentation site has every page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES += sorted(DOCS.glob("*.md"))


def prose(page):
    """The text of a page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_page_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: no such page"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_page_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    missing = [page.name for page in DOCS.glob("*.md") if f"](docs/{page.name})" not in readme]
    assert set(missing) <= {"index.md"}


def test_every_page_and_package_is_on_the_site():
    listed = set(re.findall(r"^[\w/]+$", (DOCS / "index.md").read_text(), re.MULTILINE))
    pages = {
        page.relative_to(DOCS).with_suffix("").as_posix() for page in [*DOCS.glob("*.md"), *DOCS.glob("reference/*.md")]
    }
    assert pages - {"index"} <= listed
    packages = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in ROOT.glob("fingerprint_accel/**/__init__.py")
    }
    reference = (DOCS / "reference" / "api.md").read_text().split()
    assert packages - {"fingerprint_accel.cli"} <= set(reference)  # command_line.md shows the commands


def test_the_site_sends_links_out_of_docs_to_the_repository(tmp_path, monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    from repository_links import rewrite

    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "real.py").touch()

    def rewritten(text, folder=tmp_path / "docs"):
        return rewrite(text, folder, tmp_path / "docs", tmp_path, "https://host/us/it")

    assert rewritten("[a](../benchmarks/real.py#L1)") == "[a](https://host/us/it/blob/main/benchmarks/real.py#L1)"
    assert rewritten("[a](../benchmarks)") == "[a](https://host/us/it/tree/main/benchmarks)"
    assert rewritten("[a](benchmarks/real.py)", tmp_path) == "[a](https://host/us/it/blob/main/benchmarks/real.py)"
    for same in ("[a](import.md#x)", "[a](#x)", "[a](https://b/c)", "![a](images/x.png)"):
        assert rewritten(same) == same
    assert rewritten("[a](docs/import.md)", tmp_path) == "[a](docs/import.md)"
