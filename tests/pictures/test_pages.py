"""README.md and the pages that it leads to: pictures, links, and how much a newcomer has to read."""

import re
from pathlib import Path

import pytest

from tests.pictures.__main__ import IMAGES, PICTURES, main

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "worker/README.md", ROOT / "cdk/README.md", ROOT / ".github/CONTRIBUTING.md"]


def test_prices__are_drawn_as_they_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.pictures.__main__.IMAGES", tmp_path)

    main(["prices"])

    assert (tmp_path / "prices.svg").read_text() == (IMAGES / "prices.svg").read_text()


def test_unknown_picture__is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["price"])

    assert "no such picture: price\n" in capsys.readouterr().err


def test_images__are_the_commands_and_the_readmes() -> None:
    files = {file.name: file.stat().st_size for file in IMAGES.iterdir()}

    assert files.keys() == {f"{name}.svg" for name in PICTURES}
    assert max(files.values()) <= 200_000
    shown = re.findall(r"^!\[[^]]+\]\(\.github/images/([^)]+)\)$", README.read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(files)


def test_readme__can_be_read_in_five_minutes() -> None:
    assert len(README.read_text().split()) <= 1_200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links__lead_to_a_file_and_its_heading(page: Path) -> None:
    for link in re.findall(r"\]\((?!https://)([^)\s]+)\)", _without_code(page)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_changelog__begins_with_the_version() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def test_readme__deploys_as_the_page_of_the_deployment_does() -> None:
    of_readme, of_page = (
        re.findall(r"^```sh\n(cd cdk\n.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for page in (README, ROOT / "cdk/README.md")
    )

    assert len(of_readme) == 1
    assert of_readme == of_page


def _without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, spaces as hyphens, other signs left out."""
    headings = re.findall(r"^#+ (.+)$", _without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
