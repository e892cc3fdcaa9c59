"""The help's packages: small pages of our own, a fake archive with a fake apt, and the real thing."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onggi import text
from onggi.errors import OnggiError
from onggi.text import debian

NAME = "libreoffice-help"
KO = "안녕하세요. 이 문장은 한국어로 옮긴 것입니다."

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb here")


def page(body: str) -> bytes:
    """A page as the help's are: what matters lies in DisplayArea, and there is text around it."""
    return (
        '<!DOCTYPE html><html><head><meta charset="utf-8"><title>t</title></head><body>'
        '<header id="TopLeftHeader"><p id="par_outside">LibreOffice 7.4 Help</p></header>'
        f'<div id="DisplayArea">{body}</div>'
        '<footer><p id="par_footer">debug</p></footer></body></html>'
    ).encode()


SWITCH = (
    '<span id="s1" class="switchinline"><span hidden="true" class="MAC">Command </span>'
    '<span hidden="true" id="default1">Ctrl</span></span>'
)


# ── paragraphs ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            f'<p id="par_id1">행렬을 만들려면 Shift + {SWITCH}   + Enter를\n  누릅니다.</p>',
            [("par_id1", "행렬을 만들려면 Shift + Ctrl + Enter를 누릅니다.")],
        ),
        (
            '<h1 id="hd_id2"><a name="x"></a>រូបមន្ត\u200bនៃ <span class="emph">ក្រឡា</span></h1>',
            [("hd_id2", "រូបមន្ត\u200bនៃ ក្រឡា")],  # Khmer parts words with a zero-width space
        ),
        (
            '<table><tr><td><p id="par_id3">Επιλογή <a href="x"><b>κελιού</b></a>·<br>τέλος</p></td></table>',
            [("par_id3", "Επιλογή κελιού· τέλος")],
        ),
        (
            '<p id="par_id4" dir="rtl">اختر <span class="menuitem">ملف - <em>فتح</em></span> للمتابعة.</p>',
            [("par_id4", "اختر ملف - فتح للمتابعة.")],
        ),
        ('<p id="par_id5">e\u0301</p>', [("par_id5", "é")]),
        ('<p id="par_id6">Sun\u00adday\u00a0&amp;\u3000more</p>', [("par_id6", "Sunday & more")]),
        ('<p id="par_id7">  <img src="x" alt="Icon"> </p>', []),
        ('<p id="bas_id8">code</p><p>no id</p><div id="sec_9">section</div>', []),
        ('<p id="par_a">a<!-- comment -->b</p><p id="par_b">c</p>', [("par_a", "ab"), ("par_b", "c")]),
    ],
)
def test_paragraphs(body: str, expected: list[tuple[str, str]]) -> None:
    assert list(debian.paragraphs(page(body))) == expected


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ('<span class="MAC">Option</span><span>Alt</span>', "Press Alt."),
        ('<span class="UNIX">u</span><span class="MAC">m</span><span>d</span>', "Press d."),
        ('<span class="MAC">m</span><span class="WRITER">w</span><span class="CALC">c</span>', "Press w."),
        ('<span class="MAC"><span class="keycode">Cmd</span></span>', "Press ."),
        (f'<span class="CALC">c</span><span>with {SWITCH}</span>', "Press with Ctrl."),
    ],
)
def test_one_of_the_alternatives_is_taken(variants: str, expected: str) -> None:
    body = f'<p id="par_1">Press <span class="switchinline">{variants}</span>.</p>'
    assert list(debian.paragraphs(page(body))) == [("par_1", expected)]


def test_a_mac_span_outside_a_switch_is_dropped_too() -> None:
    body = '<p id="par_1">Hold <span class="MAC">Command</span> down</p>'
    assert list(debian.paragraphs(page(body))) == [("par_1", "Hold down")]


@pytest.mark.parametrize("html", [b"", b"  \n", b"\x00\xff\xfe", b"<p", b"plain text"])
def test_pages_that_are_none_give_nothing(html: bytes) -> None:
    assert list(debian.paragraphs(html)) == []


# ── the script check ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ko", "=ISODD(-3.1)은 TRUE를 반환합니다."),
        ("ko", "LibreOffice Math 예"),
        ("ko", "PowerPoint 97/2000/XP(.ppt) 또는 Word 형식"),
        ("ko", "시간과 時間"),
        ("ja", "ToolTip を表示"),
        ("ja", 'DDE は "Dynamic Data Exchange" の略で、OLE "Object Linking and Embedding" の前身です。'),
        ("zh-Hans", "FORECAST.ETS.PI.MULT 函数"),
        ("zh-Hans", "拼出格式为「First of May, Nineteen Ninety-nine」的日期"),
        ("zh-Hant", "開啟 LibreOffice Writer"),
        ("km", "IMCOS(ចំនួនកុំផ្លិច)"),
        ("el", "Esc ή -."),
        ("el", "το y=a over b right left stack a b c alignr text"),
        ("ru", "Нажмите Shift+Ctrl+F9"),
        ("ar", "اضغط Ctrl+E"),
        ("hi", "LibreOffice में फ़ाइल खोलें"),
        ("de", "Ctrl"),
        ("vi", "Chọn tệp"),
    ],
)
def test_in_language(language: str, text: str) -> None:
    assert debian.in_language(text, language)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ko", "Click the Form-Based Filters icon."),
        ("ko", "Ctrl + Shift + E"),
        ("ko", "1904.01.01"),
        ("ko", "<SDFIELD TYPE=DOCINFO SUBTYPE=COMMENT SDFIXED>설명</SDFIELD>"),
        ("ko", "절대 위치입니다. Frames can be aligned as graphics, and the text wraps around them."),
        ("ja", "上端に揃えられます。To align the individual objects in a group, double-click to enter it."),
        ("ja", "Excel 2.1、Excel 3.0"),
        ("zh-Hans", "A，B，C，..."),
        ("km", "ប្រសិនបើ​អ្នកសង្កត់ (Alt) key, the new point will not be connected to នៅ​ចំណុច​ចុងក្រោយ"),
        ("km", "២២០០"),
        ("el", "Shift+F1"),
        ("ru", "Places the object on a separate line in the document. Этот параметр можно также выбрать."),
        ("ar", "Press Ctrl+E"),
        ("hi", "12:30"),
        ("de", "12.30"),
        ("en", "=1+2"),
    ],
)
def test_not_in_language(language: str, text: str) -> None:
    assert not debian.in_language(text, language)


# ── names and languages ────────────────────────────────────────────────────────────────────────


def test_an_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    for call in (lambda: debian.load("libreofice-help", ("ko",), tmp_path), lambda: debian.version("help")):
        with pytest.raises(OnggiError, match="libreoffice-help"):
            call()


@pytest.mark.parametrize("language", ["ar", "th", "sk", "sr-Latn"])
def test_a_language_without_a_package_says_what_there_is(language: str, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match=rf"no text in {language}\. There is: .*\bko\b.*\bzh-Hans\b"):
        debian.load(NAME, ("ko", language), tmp_path)


def test_packages_of_languages() -> None:
    packages = debian._packages(NAME, ("zh-Hans", "zh-Hant", "pt", "pt-PT", "en-GB", "km"))
    suffixes = {language: name.removeprefix("libreoffice-help-") for language, name in packages.items()}
    assert suffixes == {
        "en": "en-us",
        "zh-Hans": "zh-cn",
        "zh-Hant": "zh-tw",
        "pt": "pt-br",
        "pt-PT": "pt",
        "en-GB": "en-gb",
        "km": "km",
    }
    assert len(debian.available(NAME)) == 33


def test_version_and_licence_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert debian.version(NAME, ("ko",)) == debian.version(NAME)
    assert str(debian.EXTRACTOR) in debian.version(NAME)
    assert debian.LICENCES[NAME] == "MPL-2.0"


def test_without_apt_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OnggiError, match=r"no apt-get here.*Debian or Ubuntu.*JSONL.*`starter`"):
        debian.load(NAME, ("ko",), tmp_path)


def test_the_room_does_not_import_torch() -> None:
    code = "import sys, onggi.text.debian; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── packages ───────────────────────────────────────────────────────────────────────────────────


def build(
    folder: Path,
    package: str,
    pages: Mapping[str, bytes],
    version: str = "1:7.0",
    under: str = "usr/share/libreoffice/help/xx/text",
) -> Path:
    """A real .deb with `pages` (path under `under` → content), named as apt names it."""
    root = folder / f".root-{package}-{version}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: T <t@example.org>\n"
        "Description: test\n"
    )
    for path, html in pages.items():
        file = root / under / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(html)
    deb = folder / f"{package}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", root, deb], check=True, capture_output=True
    )
    shutil.rmtree(root)
    return deb


@needs_dpkg
def test_extract_keeps_file_and_element_as_the_id(tmp_path: Path) -> None:
    deb = build(
        tmp_path,
        "libreoffice-help-ko",
        {
            "scalc/04/02.html": page(f'<p id="par_1">{KO}</p><p id="par_2">Ctrl + E</p>'),
            "scalc/04/01.html": page(
                '<h1 id="hd_1">제목</h1><p id="par_1">첫째</p><p id="par_1">둘째</p>'
                '<p id="par_3">반쪽 \x8b¤ 글자</p><p id="par_4">[text/scalc/01/x.xhp#y not found] 함수</p>'
            ),
            "scalc/04/readme.txt": page('<p id="par_9">읽지 않음</p>'),
        },
    )
    rows = debian.extract(deb, "ko").to_pylist()
    assert rows == [
        {"_id": "scalc/04/01.html#hd_1", "text": "제목"},
        {"_id": "scalc/04/01.html#par_1", "text": "첫째"},
        {"_id": "scalc/04/02.html#par_1", "text": KO},
    ]


@needs_dpkg
def test_a_truncated_package_is_a_clear_error(tmp_path: Path) -> None:
    deb = build(tmp_path, "libreoffice-help-ko", {"a.html": page(f'<p id="par_1">{KO * 400}</p>')})
    whole = deb.read_bytes()
    for size in (0, 40, 200, len(whole) // 2, len(whole) - 30):
        deb.write_bytes(whole[:size])
        with pytest.raises(OnggiError, match="is damaged"):
            debian.extract(deb, "ko")
    deb.write_bytes(b"not a package at all" * 100)
    with pytest.raises(OnggiError, match="is damaged"):
        debian.extract(deb, "ko")


@needs_dpkg
def test_a_package_without_help_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="holds no help text"):
        debian.extract(build(tmp_path, "libreoffice-help-sk", {}), "ko")


# ── an archive of our own, with an apt-get that logs what it is asked ──────────────────────────

FAKE_APT = """#!{python}
import hashlib, pathlib, shutil, sys
repo = pathlib.Path({repo!r})
arguments = [a for a in sys.argv[1:] if a != "-q"]
while arguments[0] == "-o":
    del arguments[:2]
with open(repo / "log", "a") as log:
    print(*arguments, file=log)
if arguments[0] == "update":
    for file in (repo / "new").glob("*.deb"):
        for old in repo.glob(file.name.split("_")[0] + "_*.deb"):
            old.unlink()
        file.rename(repo / file.name)
    raise SystemExit
names = [a for a in arguments[1:] if not a.startswith("-")]
unknown = [name for name in names if not list(repo.glob(name + "_*.deb"))]
if unknown:
    sys.exit("".join(f"E: Unable to locate package {{name}}\\n" for name in unknown))
for name in names:
    file = sorted(repo.glob(name + "_*.deb"))[-1]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if "--print-uris" in arguments:
        print(f"'http://deb.example/{{file.name}}' {{file.name}} {{file.stat().st_size}} SHA256:{{digest}}")
    elif (repo / "gone").exists():
        sys.exit("E: Failed to fetch http://deb.example/ 404  Not Found")
    elif (repo / "offline").exists():
        sys.exit("Err:1 http://deb.example\\nE: Could not resolve 'deb.example'")
    elif (repo / "short").exists():
        pathlib.Path(file.name).write_bytes(file.read_bytes()[:-20])
    else:
        shutil.copy(file, file.name)
"""


class Archive:
    """A folder of packages, an `apt-get` on the PATH that serves them, and the log of its calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "new").mkdir(parents=True)

    def put(self, suffix: str, rows: Mapping[str, str], version: str = "1:7.0", new: bool = False) -> None:
        body = "".join(f'<p id="{key}">{text}</p>' for key, text in rows.items())
        build(
            self.folder / ("new" if new else ""),
            f"libreoffice-help-{suffix}",
            {"a.html": page(body)},
            version,
        )

    def calls(self) -> list[str]:
        """What apt-get was asked since the last time."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


EN = {
    "par_1": "Good morning.",
    "par_2": "Example",
    "par_3": "Example",
    "par_4": "Save the file.",
    "par_5": "7",
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("there is no dpkg-deb here")
    made = Archive(tmp_path / "archive")
    made.put("en-us", EN)
    made.put("ko", {"par_1": "좋은 아침입니다.", "par_2": "예", "par_4": "Save the file."})
    made.put("de", {"par_1": "Guten Morgen.", "par_2": "Example", "par_3": "Beispiel", "par_4": "Speichern."})
    made.put("en-gb", {**EN, "par_1": "Good morrow."})
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(FAKE_APT.format(python=sys.executable, repo=str(made.folder)))
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_load_is_parallel_in_the_order_asked(archive: Archive, cache: Path) -> None:
    table = debian.load(NAME, ("ko", "en", "de"), cache)
    assert table.schema == pa.schema({name: pa.string() for name in ("_id", "ko", "en", "de")})
    assert table.to_pylist() == [
        {"_id": "a.html#par_1", "ko": "좋은 아침입니다.", "en": "Good morning.", "de": "Guten Morgen."},
        {"_id": "a.html#par_2", "ko": "예", "en": "Example", "de": None},  # the first of two "Example"
        {"_id": "a.html#par_4", "ko": None, "en": "Save the file.", "de": "Speichern."},
    ]


def test_rows_without_text_in_any_language_asked_are_left_out(archive: Archive, cache: Path) -> None:
    table = debian.load(NAME, ("ko",), cache)
    assert table.to_pydict() == {"_id": ["a.html#par_1", "a.html#par_2"], "ko": ["좋은 아침입니다.", "예"]}


def test_british_english_may_equal_american(archive: Archive, cache: Path) -> None:
    table = debian.load(NAME, ("en-GB",), cache)
    assert table["en-GB"].to_pylist() == ["Good morrow.", "Example", "Save the file."]


def test_a_second_call_needs_no_apt(archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = debian.load(NAME, ("ko", "de"), cache)
    archive.calls()
    monkeypatch.setenv("PATH", "")
    assert debian.load(NAME, ("ko", "de"), cache).equals(first)
    assert debian.load(NAME, ("ko",), cache).num_rows == 2
    assert archive.calls() == []
    with pytest.raises(OnggiError, match="no apt-get"):
        debian.load(NAME, ("km",), cache)


def test_only_what_is_missing_is_fetched(archive: Archive, cache: Path) -> None:
    debian.load(NAME, ("ko",), cache)
    archive.calls()
    debian.load(NAME, ("ko", "de"), cache)
    assert [call for call in archive.calls() if "--print-uris" not in call] == [
        "download libreoffice-help-de"
    ]


def test_a_damaged_parquet_is_made_anew_from_the_package(archive: Archive, cache: Path) -> None:
    first = debian.load(NAME, ("ko",), cache)
    [parquet] = cache.rglob("libreoffice-help-ko_*.parquet")
    whole = parquet.read_bytes()
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
    archive.calls()
    for content in (b"", whole[: len(whole) // 2], b"rubbish" * 99, flipped):
        parquet.write_bytes(content)
        assert debian.load(NAME, ("ko",), cache).equals(first)
        assert parquet.read_bytes() == whole
    pq.write_table(pa.table({"other": [1]}), parquet)
    assert debian.load(NAME, ("ko",), cache).equals(first)
    assert all("--print-uris" in call for call in archive.calls())


def test_a_damaged_package_is_fetched_again(archive: Archive, cache: Path) -> None:
    first = debian.load(NAME, ("ko",), cache)
    [parquet], [deb] = cache.rglob("*-ko_*.parquet"), cache.rglob("*-ko_*.deb")
    whole = deb.read_bytes()
    parquet.unlink()
    deb.write_bytes(whole[:-20])
    archive.calls()
    assert debian.load(NAME, ("ko",), cache).equals(first)
    assert deb.read_bytes() == whole
    assert archive.calls()[-1] == "download libreoffice-help-ko"


def test_another_extractor_does_not_take_the_old_text(
    archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian.load(NAME, ("ko",), cache)
    monkeypatch.setattr(debian, "EXTRACTOR", debian.EXTRACTOR + 1)
    monkeypatch.setattr(debian, "in_language", lambda text, language: True)
    assert debian.load(NAME, ("en",), cache)["en"].to_pylist()[-1] == "7"


def test_versions_are_not_mixed(archive: Archive, cache: Path) -> None:
    debian.load(NAME, ("ko",), cache)
    for suffix in ("en-us", "ko", "de"):
        archive.put(suffix, {"par_1": f"{suffix} 새로운"}, version="1:8.0", new=True)
    subprocess.run(["apt-get", "update"], check=True)
    assert debian.load(NAME, ("ko",), cache)["ko"].to_pylist() == ["좋은 아침입니다.", "예"]  # still whole
    table = debian.load(NAME, ("en", "ko", "de"), cache)
    assert table.to_pylist() == [
        {"_id": "a.html#par_1", "en": "en-us 새로운", "ko": "ko 새로운", "de": "de 새로운"}
    ]


def test_old_lists_are_renewed_by_root(
    archive: Archive, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    archive.put("km", {"par_1": "អរុណសួស្តី"}, new=True)
    assert debian.load(NAME, ("km",), cache)["km"].to_pylist() == ["អរុណសួស្តី"]
    assert "update" in archive.calls()
    assert "does not know libreoffice-help-km. Running apt-get update" in capfd.readouterr().err


def test_who_is_not_root_is_told_to_renew_the_lists(
    archive: Archive, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(OnggiError, match=r"does not know libreoffice-help-km\. Run `sudo apt-get update`"):
        debian.load(NAME, ("km",), cache)
    assert "update" not in archive.calls()


def test_a_package_that_the_release_lacks(archive: Archive, cache: Path) -> None:
    with pytest.raises(OnggiError, match=r"does not know libreoffice-help-km\. The lists were renewed"):
        debian.load(NAME, ("km",), cache)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("gone", r"could not find libreoffice-help-en-us_.*404"),
        ("offline", r"could not fetch libreoffice-help-en-us_.*Could not resolve 'deb.example'"),
        ("short", r"could not find libreoffice-help-en-us_.*not what the list says"),
    ],
)
def test_a_failed_download_leaves_nothing(archive: Archive, cache: Path, trouble: str, message: str) -> None:
    (archive.folder / trouble).touch()
    with pytest.raises(OnggiError, match=message):
        debian.load(NAME, ("ko",), cache)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    (archive.folder / trouble).unlink()
    assert debian.load(NAME, ("ko",), cache).num_rows == 2


def test_a_cache_that_cannot_be_written(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OnggiError, match="could not write to the cache"):
        debian.load(NAME, ("ko",), tmp_path / "file")


# ── other sets ─────────────────────────────────────────────────────────────────────────────────


def mallard(*blocks: str) -> bytes:
    return f'<page xmlns="http://projectmallard.org/1.0/">{"".join(f"<p>{b}</p>" for b in blocks)}</page>'.encode()


def html(*blocks: str) -> bytes:
    return f'<html><head><meta charset="utf-8"></head><body>{"".join(f"<p>{b}</p>" for b in blocks)}</body></html>'.encode()


def test_one_package_with_all_languages(archive: Archive, cache: Path) -> None:
    pages = {
        "C/gnome-help/a.page": mallard("Open it.", "Close it.", "GNOME"),
        "ko/gnome-help/a.page": mallard("여십시오.", "Close it.", "그놈"),
        "ta/gnome-help/a.page": mallard("திற.", "மூடு.", "GNOME"),
        "pt_BR/gnome-help/a.page": mallard("Abra.", "Close it.", "GNOME"),
        "C/gnome-help/b.page": mallard("One.", "Two."),
        "ko/gnome-help/b.page": mallard("하나 그리고 둘."),  # laid out otherwise
        "ta/gnome-help/b.page": mallard("ஒன்று.", "இரண்டு."),
        "ko/gnome-help/only.page": mallard("한국어만."),
    }
    build(archive.folder, "gnome-user-docs", pages, "43.0-2", "usr/share/help")
    table = debian.load("gnome-user-docs", ("en", "ko", "ta", "pt"), cache)
    assert table.to_pylist() == [
        {"_id": "gnome-help/a.page#0", "en": "Open it.", "ko": "여십시오.", "ta": "திற.", "pt": "Abra."},
        {"_id": "gnome-help/a.page#1", "en": "Close it.", "ko": None, "ta": "மூடு.", "pt": None},
        {"_id": "gnome-help/a.page#2", "en": "GNOME", "ko": "그놈", "ta": None, "pt": None},
        {"_id": "gnome-help/b.page#0", "en": "One.", "ko": None, "ta": "ஒன்று.", "pt": None},
        {"_id": "gnome-help/b.page#1", "en": "Two.", "ko": None, "ta": "இரண்டு.", "pt": None},
    ]
    # Fetched once for all of them, and kept for each apart.
    assert sum("--print-uris" not in call for call in archive.calls()) == 1
    assert debian.load("gnome-user-docs", ("ta",), cache).num_rows == 4
    assert archive.calls() == []


def test_another_language_of_a_package_that_is_there(archive: Archive, cache: Path) -> None:
    pages = {
        f"{tag}/index.html": html(text)
        for tag, text in {"en": "Install.", "ko": "설치.", "zh_CN": "安装。"}.items()
    }
    under = "usr/share/doc/installation-guide-amd64"
    build(archive.folder, "installation-guide-amd64", pages, "2023+deb12u1", under)
    assert debian.load("installation-guide", ("ko",), cache)["ko"].to_pylist() == ["설치."]
    archive.calls()
    assert debian.load("installation-guide", ("zh-Hans", "ko"), cache).to_pylist() == [
        {"_id": "index.html#0", "zh-Hans": "安装。", "ko": "설치."}
    ]
    assert all("--print-uris" in call for call in archive.calls())


def test_man_pages_are_whole_pages(archive: Archive, cache: Path) -> None:
    def man(*pages: tuple[str, str]) -> dict[str, bytes]:
        return {f"{path}.gz": gzip.compress(text.encode()) for path, text in pages}

    def put(package: str, *pages: tuple[str, str]) -> None:
        build(archive.folder, package, man(*pages), "1.0", "usr/share/man")

    put("manpages", ("man7/a.7", ".SH NAME\na \\- first"), ("man1/b.1", ".SH NAME\nb"))
    english = "This sentence of the page is left in English as it was."
    put(
        "manpages-ja",
        ("ja/man7/a.7", f".SH 名前\na \\- 最初\n.PP\n{english}"),
        ("ja/man1/c.1", ".SH 名前\nc 三"),
    )
    put("manpages-de", ("de/man1/b.1", ".SH NAME\nb"), ("de/man7/a.7", ".SH BEZEICHNUNG\na \\- erste"))
    put("manpages-zh", ("zh_CN/man1/c.1", ".SH 名称\nc 三"), ("zh_TW/man1/c.1", ".SH 名稱\nc 三"))
    table = debian.load("manpages", ("en", "ja", "de", "zh-Hant", "zh-Hans"), cache)
    nothing = {"en": None, "ja": None, "de": None, "zh-Hant": None, "zh-Hans": None}
    assert table.to_pylist() == [
        {**nothing, "_id": "man1/b.1", "en": "NAME\nb"},  # not translated
        {**nothing, "_id": "man1/c.1", "ja": "名前\nc 三", "zh-Hant": "名稱\nc 三", "zh-Hans": "名称\nc 三"},
        {
            **nothing,
            "_id": "man7/a.7",
            "en": "NAME\na - first",
            "ja": "名前\na - 最初",
            "de": "BEZEICHNUNG\na - erste",
        },
    ]
    # The same page may be of another version in each language, so it is no parallel text.
    found = text.load("debian:manpages", ("ja", "de", "zh-Hans"))
    assert not found.parallel and found.languages == ("ja", "de", "zh-Hans")
    assert found.passages("ja") == {"man1/c.1": "名前\nc 三", "man7/a.7": "名前\na - 最初"}
    assert found.passages("de") == {"man7/a.7": "BEZEICHNUNG\na - erste"}
    with pytest.raises(OnggiError, match="debian:manpages has no text in ko"):
        debian.load("manpages", ("ko",), cache)


@needs_dpkg
@pytest.mark.parametrize("name", ["gnome-user-docs", "installation-guide", "manpages"])
def test_a_package_without_its_text(name: str, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="holds no help text"):
        debian.extract(build(tmp_path, name, {"x.html": page("한국어")}), "de", name)


def test_every_set_has_what_it_needs() -> None:
    from onggi import languages

    for name in debian._PACKAGES:
        assert debian.LICENCES[name] and debian._SIZES[name] and debian._READERS[name]
        assert "en" in debian.available(name)
        assert all(languages.canonical(tag) == tag for tag in debian.available(name))


# ── the real packages ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt here, so no packages of Debian's")
    folder = tmp_path_factory.mktemp("real")
    return folder, debian.load(NAME, ("en", "ko", "km"), folder)


def test_real_proof_of_parallelism(real: tuple[Path, pa.Table]) -> None:
    rows = {row["_id"]: row for row in real[1].to_pylist()}
    row = rows["scalc/04/01020000.html#par_id3153967"]
    assert row["en"] == (
        "To create a matrix in which all the cells contain the same information as what you entered on the "
        "Input line, press Shift+Ctrl+Enter. You cannot edit the components of the matrix."
    )
    assert row["ko"] == (
        "모든 셀이 입력줄에 입력한 것과 동일한 정보를 포함하는 행렬을 만들려면 Shift + Ctrl + Enter를 "
        "누릅니다. 행렬의 구성 요소는 편집할 수 없습니다."
    )
    # Its neighbour stands in the Korean package in English.
    assert rows["scalc/04/01020000.html#par_id3155067"]["ko"] is None


def test_real_counts(real: tuple[Path, pa.Table]) -> None:
    """DATA.md counts a paragraph once for each pair of id and English text: 47,367, of which ko 23,139
    and km 23,494 are translated. `load` keeps one for each English text, so there are fewer rows; the
    same share of them is translated. Both are checked.
    """
    folder, table = real
    translated = {tag: 1 - table[tag].null_count / len(table) for tag in ("ko", "km")}
    assert translated == pytest.approx({"ko": 23139 / 47367, "km": 23494 / 47367}, abs=0.03)
    assert len(set(table["en"].to_pylist())) == len(table) == pytest.approx(37_385, rel=0.05)

    tables = debian._cached(folder / "debian" / NAME, debian._packages(NAME, ("ko", "km")))
    assert tables is not None
    texts = {tag: dict(zip(*found.to_pydict().values(), strict=True)) for tag, found in tables.items()}
    first = {(key.split("#")[1], text): key for key, text in reversed(texts["en"].items())}
    counts = {
        tag: sum(key in found and found[key] != texts["en"][key] for key in first.values())
        for tag, found in texts.items()
    }
    assert {**counts, "en": len(first)} == pytest.approx({"en": 47367, "ko": 23139, "km": 23494}, rel=0.03)


def test_real_text_is_clean(real: tuple[Path, pa.Table]) -> None:
    for tag in ("en", "ko", "km"):
        texts = [text for text in real[1][tag].to_pylist() if text is not None]
        for rubbish in ("CommandCtrl", "OptionAlt", "not found]", "  ", "\n", "\x8b", "\ufffd", "<span"):
            assert not [text for text in texts if rubbish in text], (tag, rubbish)
        assert all(debian.in_language(text, tag) for text in texts)


def test_real_second_call_is_instant(real: tuple[Path, pa.Table], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table = real
    monkeypatch.setenv("PATH", "")
    start = time.monotonic()
    assert debian.load(NAME, ("en", "ko", "km"), folder).equals(table)
    assert time.monotonic() - start < 5


def test_real_packages_are_what_the_archive_signed(real: tuple[Path, pa.Table]) -> None:
    debs = sorted(real[0].rglob("*.deb"))
    located = debian._locate(["libreoffice-help-en-us", "libreoffice-help-ko", "libreoffice-help-km"])
    digests = {package.file: package.sha256 for package in located.values()}
    assert {deb.name: hashlib.sha256(deb.read_bytes()).hexdigest() for deb in debs} == digests


def test_real_gnome_help(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt here, so no packages of Debian's")
    table = debian.load("gnome-user-docs", ("en", "ko", "ru"), tmp_path)
    rows = {row["en"]: row for row in table.to_pylist()}
    row = rows["To change which key is used to display the Activities overview:"]
    assert row["ko"] == "현재 활동 개요를 표시할 키를 바꾸려면:"
    assert row["ru"] == "Чтобы для открытия Обзора назначить другую клавишу:"
    for tag in ("ko", "ru"):
        assert table[tag].null_count < 0.1 * len(table)
