"""Manuals become paragraphs: what is read, what is left out, in scripts of several kinds."""

from __future__ import annotations

import pytest

from onggi.text import manuals

MALLARD = """<?xml version="1.0" encoding="utf-8"?>
<page xmlns="http://projectmallard.org/1.0/" type="topic" id="x" xml:lang="ko">
  <info>
    <link type="guide" xref="a11y"/><title type="sort">1</title>
    <credit type="author"><name>조성호</name></credit>
    <desc>창을 <em>도드라지게</em>
      합니다.</desc>
    <mal:credit xmlns:mal="http://projectmallard.org/1.0/"><mal:name>이름</mal:name></mal:credit>
  </info>
  <comment><cite date="2021">me</cite><p>TODO</p></comment>
  <title>ការកម្រិត</title>
  <steps><item><p><gui>접근성</gui>을 <code>ls -l</code>로 엽니다.</p></item></steps>
  <!-- 주석 --><screen>$ <p>code</p></screen><code><p>x</p></code>
  <note><title>Καλό</title><p>Τέλος&#173;εδώ</p><p> </p></note>
</page>"""


def test_mallard() -> None:
    assert manuals.mallard(MALLARD.encode()) == [
        *("창을 도드라지게 합니다.", "ការកម្រិត", "접근성을 ls -l로 엽니다.", "Καλό", "Τέλοςεδώ"),
    ]


@pytest.mark.parametrize("page", [b"", b"\x00\xff", b"<page><p>half", "쪽".encode()])
def test_what_is_no_mallard_gives_nothing(page: bytes) -> None:
    assert manuals.mallard(page) == []


def test_a_page_reads_no_file_of_ours() -> None:
    page = b'<!DOCTYPE page [<!ENTITY x SYSTEM "file:///etc/hostname">]><page><p>a &x; b</p></page>'
    assert manuals.mallard(page) == ["a b"]


DOCBOOK = """<html><head><meta charset="utf-8"><title>t</title></head><body>
<div class="navheader"><table><tr><th>소개</th></tr></table></div>
<div class="sect1"><h2 class="title"><a name="x"></a>B.1. 소개</h2>
<div class="toc"><dl><dt>목차</dt></dl></div>
<p>미리 설정은 <code class="literal">preseed</code>로<br>합니다.<a href="#f" class="footnote"><sup>[1]</sup></a> </p>
<ul><li><p>វិធី</p></li><li>δεύτερο <b>έντονο</b></li></ul>
<pre class="screen">$ ls</pre>
<table><thead><tr><th>方法</th></tr></thead><tr><td>예<sup class="footnoteref">[a]</sup></td><td></td></tr></table>
<dl><dt>용어</dt><dd><p>뜻 하나</p><p>뜻 둘</p></dd></dl></div>
<div class="footnotes"><div class="footnote"><p>주</p></div></div>
<div class="navfooter"><p>다음</p></div></body></html>"""


def test_docbook() -> None:
    assert manuals.docbook(DOCBOOK.encode()) == [
        *("B.1. 소개", "미리 설정은 preseed로 합니다.", "វិធី", "δεύτερο έντονο", "方法", "예"),
        *("용어", "뜻 하나", "뜻 둘"),
    ]
    assert manuals.docbook(b"") == []


ROFF = r"""'\" t
.\" DO NOT MODIFY
.TH CP 1 "2021年5月" "GNU coreutils" "ユーザーコマンド"
.SH 名前
cp \- ファイルの\fIコピー\fPを行う
.SH "SEE ALSO"
.de XX
hidden \\$1
..
.B cp
[\fI\,OPTION\/\fR]... \(lqквадрат\(rq
.br
.BR rename (2),
.IR foo\-bar .
.\" comment
.PP
Первая строка
вторая \[u20AC] \(co x\e0 don\(aqt.\" comment
.TP
\fB\-a\fR, \fB\-\-archive\fR
κάνει "αυτό"
.TP
.BI \-b " ファイル"
次の行
.IP \(bu 3
하나
.nf
code here
.fi
.TS
a b
.TE
.UR http://x
링크
.UE
.SS ""

រៀង \s-1SMALL\s0 \h'2n'\*(aq\*[x] \m[red]រ\m[]
"""


def test_roff() -> None:
    assert manuals.roff(ROFF) == [
        "名前",
        "cp - ファイルのコピーを行う",
        "SEE ALSO",
        "cp [OPTION]... “квадрат”",
        "rename(2), foo-bar.",
        r"Первая строка вторая € © x\0 don't.",
        '-a, --archive κάνει "αυτό"',
        "-b ファイル 次の行",
        "하나",
        "링크",
        "រៀង SMALL ' រ",
    ]


@pytest.mark.parametrize(
    "page", ["", ".so man1/cp.1\n", ".Dd 2020\n.Dt X 1\n.Sh ΟΝΟΜΑ\nκείμενο\n", '.\\" 주석\n']
)
def test_pages_that_give_nothing(page: str) -> None:
    assert manuals.roff(page) == []


def test_roff_that_is_cut_off() -> None:
    assert manuals.roff(".SH 이름\nធ\\f\n.TP\n\\") == ["이름", "ធ"]
    assert manuals.roff(".nf\nnever ended\nΑ") == []
