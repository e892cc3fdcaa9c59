"""Make the facts and names that onggi's tasks ship from CLDR: `python workshop/world_facts.py`.

It fetches four npm packages (Unicode-3.0) with `npm pack`, takes number words from `unicode-rbnf`
(MIT, from CLDR's rules), and writes src/onggi/evaluate/tasks/data/: `items.json`, the items of each
task as keys of concepts, and `names/LANGUAGE.json`, what each concept is called. It decides what
may be asked; docs/tasks-checked.md says why. The same packages make the same bytes.

    pip install unicode-rbnf==2.4.1 && python workshop/world_facts.py [FOLDER]

FOLDER keeps the packages (default: a temporary one).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from unicode_rbnf import RbnfEngine

from onggi import languages

VERSION = "48.2.0"
PACKAGES = ("cldr-core", "cldr-localenames-full", "cldr-dates-full", "cldr-numbers-full")
DATA = Path(__file__).parents[1] / "src" / "onggi" / "evaluate" / "tasks" / "data"
# An item must be sound in all of these: their names were read one by one.
READ = ("en", "de", "es", "ru", "el", "ko", "ja", "zh-Hans", "ar", "hi", "th", "km")
DEV = 5  # items of each task that only ever serve as shots
KINDS = {
    "capitals": "capital",
    "currencies": "currency",
    "languages_of": "language",
    "continents": "continent",
}
CONTINENTS = ("002", "019", "142", "150", "009")

# CLDR has no capitals, but names the cities of its time zones. Left out: capitals that are no zone's
# city; Israel (disputed), Bolivia (two), Indonesia, Equatorial Guinea and Burundi (moving or moved).
CAPITALS = dict(
    pair.split("=")
    for pair in """
    AF=Asia/Kabul AL=Europe/Tirane AM=Asia/Yerevan AO=Africa/Luanda AR=America/Buenos_Aires
    AT=Europe/Vienna AZ=Asia/Baku BA=Europe/Sarajevo BD=Asia/Dhaka BE=Europe/Brussels
    BF=Africa/Ouagadougou BG=Europe/Sofia BJ=Africa/Porto-Novo BS=America/Nassau BT=Asia/Thimphu
    BW=Africa/Gaborone BY=Europe/Minsk CD=Africa/Kinshasa CF=Africa/Bangui CG=Africa/Brazzaville
    CL=America/Santiago CO=America/Bogota CU=America/Havana CY=Asia/Nicosia CZ=Europe/Prague
    DE=Europe/Berlin DK=Europe/Copenhagen DO=America/Santo_Domingo DZ=Africa/Algiers EE=Europe/Tallinn
    EG=Africa/Cairo ER=Africa/Asmera ES=Europe/Madrid ET=Africa/Addis_Ababa FI=Europe/Helsinki
    FR=Europe/Paris GA=Africa/Libreville GB=Europe/London GE=Asia/Tbilisi GH=Africa/Accra
    GM=Africa/Banjul GN=Africa/Conakry GR=Europe/Athens GT=America/Guatemala GW=Africa/Bissau
    HN=America/Tegucigalpa HR=Europe/Zagreb HT=America/Port-au-Prince HU=Europe/Budapest
    IE=Europe/Dublin IQ=Asia/Baghdad IR=Asia/Tehran IS=Atlantic/Reykjavik IT=Europe/Rome
    JO=Asia/Amman JP=Asia/Tokyo KE=Africa/Nairobi KG=Asia/Bishkek KH=Asia/Phnom_Penh
    KP=Asia/Pyongyang KR=Asia/Seoul KW=Asia/Kuwait LA=Asia/Vientiane LB=Asia/Beirut LI=Europe/Vaduz
    LR=Africa/Monrovia LS=Africa/Maseru LT=Europe/Vilnius LU=Europe/Luxembourg LV=Europe/Riga
    LY=Africa/Tripoli MD=Europe/Chisinau ME=Europe/Podgorica MG=Indian/Antananarivo MK=Europe/Skopje
    ML=Africa/Bamako MN=Asia/Ulaanbaatar MR=Africa/Nouakchott MX=America/Mexico_City MZ=Africa/Maputo
    NA=Africa/Windhoek NE=Africa/Niamey NI=America/Managua NL=Europe/Amsterdam NO=Europe/Oslo
    NP=Asia/Katmandu OM=Asia/Muscat PA=America/Panama PE=America/Lima PG=Pacific/Port_Moresby
    PH=Asia/Manila PL=Europe/Warsaw PT=Europe/Lisbon PY=America/Asuncion RO=Europe/Bucharest
    RS=Europe/Belgrade RU=Europe/Moscow RW=Africa/Kigali SA=Asia/Riyadh SD=Africa/Khartoum
    SE=Europe/Stockholm SG=Asia/Singapore SI=Europe/Ljubljana SK=Europe/Bratislava SL=Africa/Freetown
    SN=Africa/Dakar SO=Africa/Mogadishu SR=America/Paramaribo SS=Africa/Juba ST=Africa/Sao_Tome
    SV=America/El_Salvador SY=Asia/Damascus TD=Africa/Ndjamena TG=Africa/Lome TH=Asia/Bangkok
    TJ=Asia/Dushanbe TL=Asia/Dili TM=Asia/Ashgabat TN=Africa/Tunis TT=America/Port_of_Spain
    UA=Europe/Kiev UG=Africa/Kampala UY=America/Montevideo UZ=Asia/Tashkent VE=America/Caracas
    WS=Pacific/Apia ZM=Africa/Lusaka ZW=Africa/Harare
    """.split()
)
# Names that a reader would not write so.
NAMES = {
    "ko": {
        "capital": {
            "Europe/Kiev": "키이우",
            "Europe/Vienna": "빈",
            "America/Buenos_Aires": "부에노스아이레스",
        },
        "country": {"CF": "중앙아프리카 공화국", "ZA": "남아프리카 공화국"},
    },
    "ja": {"currency": {"MDL": "レウ", "RON": "レウ", "TOP": "パアンガ"}},
    "ar": {
        "capital": {"Africa/Mogadishu": "مقديشو", "Asia/Bishkek": "بيشكيك", "Asia/Ulaanbaatar": "أولان باتور"}
    },
    "hi": {"capital": {"Asia/Damascus": "दमिश्क"}, "continent": {"019": "अमेरिका"}},
}
# On two continents, or on another in many an atlas than in the United Nations' list.
TWO_CONTINENTS = {"RU", "TR", "CY", "GE", "AM", "AZ", "KZ", "EG"}
# Where CLDR's official language is out of date, contested, or one of several equals.
UNCLEAR_LANGUAGE = set("AF BF ER IL KM KZ ME ML MU MW NE SD TL UG".split())
# Official there too, though CLDR does not say so (Bolivia's constitution names 36 languages): no wrong answers.
ALSO_OFFICIAL = {
    "AR": {"gn"},
    "BO": {"gn"},
    "BR": {"gn"},
    "ET": {"om", "ti", "so", "aa"},
    "SS": {"ar", "sw"},
    "ZW": {"ny", "st", "tn", "ts", "ve", "xh"},
}
# Paid with there beside the country's own.
ALSO_PAID = {"KH": {"Dollar"}, "SZ": {"Rand"}}
# A unit that CLDR names with an epithet or that cannot be told from its country; Bulgaria's is of 2026.
UNCLEAR_CURRENCY = {"BA", "BG", "IL", "NI", "PG", "ST", "VU", "ZW"}
# Units that are one word in some languages never stand against each other.
FAMILIES = (
    {"Krone", "Króna", "Krona", "Koruna"},
    {"Rial", "Riyal", "Riel", "Real"},
    {"Dinar", "Denar"},
    {"Leu", "Lek"},
    {"Rupee", "Rupiah", "Rufiyaa"},
    {"Pound", "Lira"},
    {"Yen", "Yuan", "Won", "Kyat", "Dollar"},  # all 元 in Chinese
    {"Dram", "Dirham"},
    {"Kwanza", "Kwacha"},
)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    cldr = Cldr(folder)
    prompts = yaml.safe_load((DATA / "prompts.yaml").read_text(encoding="utf-8"))
    facts = Facts(cldr)
    names = {tag: Names(cldr, tag, facts) for tag in prompts if tag != "any"}
    items = facts.items([names[tag] for tag in READ])
    for old in (DATA / "names").glob("*.json"):
        old.unlink()
    asked: dict[str, Counter[str]] = {task: Counter() for task in items}
    for tag, name in names.items():
        file = name.needed(items, prompts[tag])
        _write(DATA / "names" / f"{tag}.json", file)
        for task in prompts[tag]:
            asked[task].update(item["id"] for item in items[task] if name.asks(item, task, file))
    for task, counts in asked.items():
        # The shots are the first items that every language can ask.
        everywhere = [item for item in items[task] if counts[item["id"]] == max(counts.values(), default=0)]
        shots = everywhere[:DEV]
        items[task] = [*shots, *(item for item in items[task] if item not in shots)]
    items |= number_items()
    _write(DATA / "items.json", {"cldr": VERSION, "dev": DEV, "tasks": items})
    (DATA / "LICENSE-Unicode-3.0.txt").write_text(cldr.licence(), encoding="utf-8")
    print_leaks(names, facts)


def print_leaks(names: dict[str, Names], facts: Facts) -> None:
    """Markdown: of the facts before any was left out, the share whose answer the country's name gives away."""
    answers = {"capital": facts.capital, "full currency": facts.currency, "currency": facts.currency}
    answers |= {"language": facts.language, "continent": facts.continent}
    print("| language | " + " | ".join(f"{kind} ({len(of)})" for kind, of in answers.items()) + " |")
    print("|---" * (len(answers) + 1) + "|")
    for tag in READ:
        of = names[tag].names | {"full currency": names[tag].full}
        shares = []
        for kind, keys in answers.items():
            named = [(c, key) for c, key in keys.items() if c in of["country"] and key in of[kind]]
            leaking = sum(leaks(of["country"][c], of[kind][key]) for c, key in named)
            shares.append(f"{leaking / len(named):.0%}")
        print(f"| {tag} | " + " | ".join(shares) + " |")


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=0, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


class Cldr:
    """CLDR's JSON packages, unpacked under `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for package in PACKAGES:
            if not (folder / package).is_dir():
                archive = folder / f"{package}-{VERSION}.tgz"
                if not archive.is_file():
                    subprocess.run(
                        ["npm", "pack", "--silent", f"{package}@{VERSION}"], cwd=folder, check=True
                    )
                with tarfile.open(archive) as tar:
                    tar.extractall(folder / f"{package}.part", filter="data")
                (folder / f"{package}.part" / "package").rename(folder / package)

    @functools.cache  # noqa: B019 - one object, for the length of one run
    def read(self, package: str, path: str) -> Any:
        return json.loads((self.folder / package / path).read_text(encoding="utf-8"))

    def supplemental(self, name: str, *keys: str) -> Any:
        found = self.read("cldr-core", f"supplemental/{name}.json")["supplemental"]
        return functools.reduce(dict.__getitem__, keys, found)

    def main(self, package: str, tag: str, file: str, *keys: str) -> dict[str, Any]:
        locale = {"zh-Hans": "zh"}.get(tag, tag)
        found = self.read(package, f"main/{locale}/{file}.json")["main"][locale]
        return functools.reduce(dict.__getitem__, keys, found)

    def licence(self) -> str:
        return (self.folder / "cldr-core" / "LICENSE").read_text(encoding="utf-8")


class Facts:
    """What is so, as keys: country → currency, continent, languages, capital. UN members only."""

    def __init__(self, cldr: Cldr):
        containment = cldr.supplemental("territoryContainment", "territoryContainment")
        self.countries = sorted(containment["UN"]["_contains"])
        self.continent = {
            country: continent
            for continent in CONTINENTS
            for country in _inside(continent, containment)
            if country in self.countries
        }
        tenders = {
            country: [
                code
                for dated in cldr.supplemental("currencyData", "currencyData", "region")[country]
                for code, about in dated.items()
                if "_to" not in about and about.get("_tender") != "false"
            ]
            for country in self.countries
        }
        self.currency = {
            country: codes[0]
            for country, codes in tenders.items()
            if len(codes) == 1 and country not in UNCLEAR_CURRENCY
        }
        self.users = {
            code: [c for c in self.currency if self.currency[c] == code] for code in self.currency.values()
        }
        english = cldr.main("cldr-numbers-full", "en", "currencies", "numbers", "currencies")
        self.unit = {code: english[code]["displayName"].split()[-1] for code in self.users}
        self.official: dict[str, set[str]] = {}
        self.language: dict[str, str] = {}
        population = cldr.supplemental("territoryInfo", "territoryInfo")
        for country in self.countries:
            status: dict[str, list[tuple[float, str]]] = {}
            for tag, about in population[country]["languagePopulation"].items():
                if "_officialStatus" in about:
                    key = tag.split("_")[0]
                    status.setdefault(about["_officialStatus"], []).append(
                        (float(about["_populationPercent"]), key)
                    )
            self.official[country] = {key for found in status.values() for _, key in found}
            self.official[country] |= ALSO_OFFICIAL.get(country, set())
            best = status.get("official") or status.get("de_facto_official")
            if best and country not in UNCLEAR_LANGUAGE:
                self.language[country] = max(best)[1]
        self.capital = {country: zone for country, zone in CAPITALS.items() if country in self.countries}

    def family(self, code: str) -> str:
        return self.family_of(self.unit[code])

    def family_of(self, unit: str) -> str:
        return next((min(family) for family in FAMILIES if unit in family), unit)

    def items(self, read: list[Names]) -> dict[str, list[dict[str, Any]]]:
        return {
            "capitals": self._items("capitals", self.capital, read, lambda key: key, {}),
            "currencies": self._items(
                "currencies",
                self.currency,
                read,
                self.family,
                {c: {code for code in self.unit if self.unit[code] in also} for c, also in ALSO_PAID.items()},
            ),
            "languages_of": self._items("languages_of", self.language, read, lambda key: key, self.official),
            "continents": self._continents(read),
        }

    def _items(
        self,
        task: str,
        answers: dict[str, str],
        read: list[Names],
        family: Callable[[str], str],
        never: dict[str, set[str]],
    ) -> list[dict[str, Any]]:
        """Items whose answer is not given away in any of `read`, with three distractors that all of them
        name: answers of other countries, of the same continent while there are any, of another `family`."""
        kind = KINDS[task]
        sound = {c: key for c, key in answers.items() if not any(n.leaks(c, kind, key) for n in read)}
        named = {c: key for c, key in sound.items() if all(key in n.names[kind] for n in read)}
        items = []
        for country, key in sound.items():
            chance = _random(task, country)
            others = [other for other in named if other != country]
            chance.shuffle(others)
            others.sort(key=lambda other: self.continent[other] != self.continent[country])
            taken = [key]
            for other in others:
                candidate = named[other]
                if candidate in never.get(country, ()) or family(candidate) in map(family, taken):
                    continue
                if any(n.alike(kind, candidate, earlier) for n in read for earlier in taken):
                    continue
                if any(n.leaks(country, kind, candidate) for n in read):
                    continue
                taken.append(candidate)
                if len(taken) == 4:
                    break
            assert len(taken) == 4, (task, country)
            items.append({"id": f"{task}-{country}", "country": country, "choices": taken})
        return _placed(task, items)

    def _continents(self, read: list[Names]) -> list[dict[str, Any]]:
        items = []
        for country, continent in sorted(self.continent.items()):
            if country in TWO_CONTINENTS or any(n.leaks(country, "continent", continent) for n in read):
                continue
            others = [other for other in CONTINENTS if other != continent]
            _random("continents", country).shuffle(others)
            items.append({"id": f"continents-{country}", "country": country, "choices": [continent, *others]})
        return _placed("continents", items)


def _inside(group: str, containment: Any) -> Iterable[str]:
    for part in containment.get(group, {}).get("_contains", []):
        yield part
        yield from _inside(part, containment)


def _random(*of: object) -> random.Random:
    return random.Random(hashlib.sha256("/".join(map(str, of)).encode()).digest())


def _placed(task: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In an order of their own, the answer (first of `choices`) moved to each place equally often."""
    _random(task).shuffle(items)
    for number, item in enumerate(items):
        answer, *others = item["choices"]
        item["answer"] = number % (len(others) + 1)
        item["choices"] = [*others[: item["answer"]], answer, *others[item["answer"] :]]
    return items


class Names:
    """What countries, capitals, currencies, languages and continents are called in one language."""

    def __init__(self, cldr: Cldr, tag: str, facts: Facts):
        self.tag = tag
        territories = cldr.main(
            "cldr-localenames-full", tag, "territories", "localeDisplayNames", "territories"
        )
        tongues = cldr.main("cldr-localenames-full", tag, "languages", "localeDisplayNames", "languages")
        currencies = cldr.main("cldr-numbers-full", tag, "currencies", "numbers", "currencies")
        zones = cldr.main("cldr-dates-full", tag, "timeZoneNames", "dates", "timeZoneNames", "zone")
        self.names: dict[str, dict[str, str]] = {
            "country": _present((c, territories.get(c)) for c in facts.countries),
            "continent": _present((c, territories.get(c)) for c in CONTINENTS),
            "language": _present((key, tongues.get(key)) for key in set(facts.language.values())),
            "capital": _present((zone, self._city(zones, zone)) for zone in facts.capital.values()),
        }
        full = _present(
            (code, currencies.get(code, {}).get("displayName", "").replace("\u200b", " "))
            for code in facts.users
        )
        self.full = {code: _clean(name) for code, name in full.items()}
        self.names["currency"] = units(tag, full, facts, self.names["country"])
        self.names["number"] = number_words(tag)
        for kind, mended in NAMES.get(tag, {}).items():
            self.names[kind] |= mended

    def _city(self, zones: Any, zone: str) -> str | None:
        for part in zone.split("/"):
            zones = zones.get(part, {})
        # A Latin-script locale leaves out what is spelt as in the zone's own name: Berlin in German.
        city = zones.get("exemplarCity")
        if city is None and languages.is_latin(self.tag):
            city = zone.split("/")[-1].replace("_", " ")
        return city

    def leaks(self, country: str, kind: str, key: str) -> bool:
        """The country's name gives the answer away (not so where one of them has no name here)."""
        name, answer = self.names["country"].get(country), self.names[kind].get(key)
        return bool(name and answer and leaks(name, answer))

    def alike(self, kind: str, one: str, other: str) -> bool:
        names = self.names[kind]
        return one in names and other in names and _fold(names[one]) == _fold(names[other])

    def needed(self, items: dict[str, list[dict[str, Any]]], prompts: dict[str, str]) -> dict[str, Any]:
        """The names that items use, kind → key → name, and `without`: items that this language cannot ask,
        since the country's name would give the answer away or two choices are one word. A task of which
        under nine items in ten are named has no place in prompts.yaml.
        """
        found: dict[str, Any] = {"country": {}, "without": []}
        for task in prompts:
            kind, have = KINDS[task], self.names[KINDS[task]]
            named = [
                item
                for item in items[task]
                if item["country"] in self.names["country"] and all(key in have for key in item["choices"])
            ]
            if len(named) < 0.9 * len(items[task]):
                raise SystemExit(f"prompts.yaml asks for {task} in {self.tag}, whose names are not complete.")
            found["country"] |= {item["country"]: self.names["country"][item["country"]] for item in named}
            found[kind] = {key: have[key] for item in named for key in item["choices"]}
            found["without"] += [
                item["id"]
                for item in named
                if self.leaks(item["country"], kind, item["choices"][item["answer"]])
                or len({_fold(have[key]) for key in item["choices"]}) < len(item["choices"])
            ]
        if self.names["number"]:
            found["number"] = self.names["number"]
        return found

    def asks(self, item: dict[str, Any], task: str, file: dict[str, Any]) -> bool:
        """Whether this language, with `file` as its names, has the item."""
        named = item["country"] in file["country"] and all(
            key in file[KINDS[task]] for key in item["choices"]
        )
        return named and item["id"] not in file["without"]


def _present(pairs: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    return {key: _clean(value) for key, value in sorted(pairs) if value}


def _clean(text: str) -> str:
    text = text.replace("\u200b", "").replace("\u00ad", "").replace("\u200e", "").replace("\u200f", "")
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _fold(text: str) -> str:
    """Without case, and without accents where letters carry them (not the vowel signs of Indic scripts)."""
    text = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(c for c in text if not "\u0300" <= c <= "\u036f" and not "\u064b" <= c <= "\u065f")
    return unicodedata.normalize("NFC", kept)


def _words(text: str) -> list[str]:
    words = re.findall(r"[^\s\-–(),.·・’'&/]+", _fold(text))
    # The article is part of an Arabic word, `bahasa` or `lingua` part of none that it names.
    return [re.sub(r"^(ال|لل)(?=...)", "", word) for word in words]


# How many letters at the beginning of two words give one away by the other: by script.
STARTS = (
    ("CJK", 1),
    ("HANGUL", 2),
    ("DEVANAGARI BENGALI GURMUKHI GUJARATI TAMIL TELUGU KANNADA MALAYALAM", 4),
)
STARTS += (("SINHALA THAI LAO MYANMAR KHMER", 4),)


def leaks(country: str, answer: str) -> bool:
    """Whether `country` gives `answer` away: words of both begin with the same three letters (one Han
    character, two syllables of Hangul, four signs of an Indic script), or share five in a row, or the one holds the other (エルサルバドル, ドル).

        leaks("Algeria", "Algiers"), leaks("Lesotho", "Sotho"), leaks("프랑스", "프랑스어"), not leaks("Peru", "Lima")
    """
    if _fold(answer) in _fold(country):
        return True
    for a, b in itertools.product(_words(country), _words(answer)):
        script = unicodedata.name(a[0], "").split(" ")[0]
        start = next((count for scripts, count in STARTS if script in scripts.split()), 3)
        if len(a) >= start and a[:start] == b[:start]:
            return True
        if any(a[i : i + 5] in b for i in range(len(a) - 4)):
            return True
    return False


# ── currencies without their country ─────────────────────────────────────────────────────────────

# Where neither the rules below nor CLDR's name gives the bare unit. None: it cannot be named alone.
UNITS: dict[str, dict[str, str | None]] = {
    "ko": {"CNY": "위안", "JPY": "엔", "MDL": "레우", "MVR": "루피야"},
    "ja": {
        "AED": "ディルハム",
        "CNY": "人民元",
        "GBP": "ポンド",
        "JPY": "円",
        "KPW": "ウォン",
        "KRW": "ウォン",
        "USD": "ドル",
    },
    # 元 is the dollar, the yen, the won and the kyat; with their countries' names they give them away.
    "zh-Hans": {
        "BDT": "塔卡",
        "AED": "迪拉姆",
        "EUR": "欧元",
        "MKD": "第纳尔",
        "SAR": "里亚尔",
        "JPY": None,
        "KPW": None,
        "KRW": None,
        "MMK": None,
        "THB": "铢",
    },
    "vi": {"LBP": "Bảng"},
    "eu": {"XAF": "franko", "XOF": "franko"},
    "am": {"TTD": "ዶላር"},
    "th": {"CZK": "โครูนา", "MGA": "อาเรียรี", "MMK": "จ๊าต", "SZL": "ลิลันเจนี"},
    "km": dict.fromkeys(("ARS", "CLP", "DOP", "MXN", "PHP"), "ប៉េសូ")
    | {"CHF": "ហ្វ្រង់", "ERN": "ណាក់ហ្វា", "PEN": "សូល", "TRY": "លីរ៉ា", "ZMW": "ក្វាចា"},
}
PARTICLES = set(
    "CFA КФА BCEAO BEAC ВСЕАО dels ng на እና de del da do dos das di ya של и i і ja és y e et and und og och en & και এবং ও மற்றும் và of".split()
)
# Written without spaces, the unit at the end or at the beginning.
GLUED = {"zh-Hans": "end", "th": "beginning", "km": "beginning"}


def units(tag: str, full: dict[str, str], facts: Facts, countries: dict[str, str]) -> dict[str, str]:
    """Currencies by their unit alone, `Dinar` for `Algerian Dinar`, since the full name is the answer.

    Of the words of the full name those that begin like a country that uses it go; of what is left,
    the word that most currencies share; else the one at the end where this language puts the unit.
    """
    names = {code: re.sub(r"\s*[(（].*[)）]", "", name) for code, name in full.items()}
    found = _glued(tag, names, facts, countries) if tag in GLUED else _spaced(names, facts, countries)
    found |= UNITS.get(tag, {})
    # A name that this language gives to another unit is a slip of CLDR's: nepali has Algerian "dollars".
    usual = {
        unit: Counter(found[code] for code in found if facts.unit[code] == unit).most_common(1)[0][0]
        for unit in sorted({facts.unit[code] for code in found})
    }
    slips = {
        code
        for code, name in found.items()
        for unit, other in usual.items()
        if name == other and name != usual[facts.unit[code]] and facts.family_of(unit) != facts.family(code)
    }
    return {code: name for code, name in found.items() if name and code not in slips}


def _spaced(names: dict[str, str], facts: Facts, countries: dict[str, str]) -> dict[str, str | None]:
    split = {
        code: [word for word in re.findall(r"[^\s\-–]+", name) if word not in PARTICLES]
        for code, name in names.items()
    }
    frequency = Counter(word.casefold() for words in split.values() for word in set(words))
    ends = Counter(
        words.index(max(words, key=lambda w: frequency[w.casefold()])) == len(words) - 1
        for words in split.values()
        if len(words) == 2
    )
    last = ends[True] >= ends[False]
    found: dict[str, str | None] = {}
    for code, words in split.items():
        left = [
            w for w in words if not any(leaks(countries.get(c, " "), w) for c in facts.users[code])
        ] or words
        unit = left[-1 if last else 0]
        if frequency[unit.casefold()] == 1:  # an epithet, unless all are new
            unit = max(reversed(left) if last else left, key=lambda w: frequency[w.casefold()])
        compound = [
            w for w, n in frequency.items() if n > 2 and unit.endswith(w) and unit != w and len(w) > 2
        ]
        if compound:  # fijidollar
            unit = max(compound, key=len)
        follows = words[words.index(unit) + 1 :][:1] if unit in words else []
        if follows and 2 < frequency[unit.casefold()] == frequency[follows[0].casefold()]:
            unit += f" {follows[0]}"  # đô la
        found[code] = unit.strip("[]")
    return found


def _glued(tag: str, names: dict[str, str], facts: Facts, countries: dict[str, str]) -> dict[str, str | None]:
    at_end = GLUED[tag] == "end"

    def part(name: str, length: int) -> str:
        return name[-length:] if at_end else name[:length]

    found: dict[str, str | None] = {}
    for code, name in names.items():
        users = sorted((countries[c] for c in facts.users[code] if c in countries), key=len, reverse=True)
        stripped = [name.removeprefix(user) if at_end else name.removesuffix(user) for user in users]
        shorter = [s for s in stripped if s and s != name]
        counts = {
            length: sum(part(other, length) == part(name, length) for other in names.values())
            for length in range(1 if at_end else 3, len(name))
        }
        if " " in name and not at_end:  # Khmer marks where words end
            found[code] = name.split(" ")[0]
        elif shorter:
            found[code] = min(shorter, key=len)
        elif counts and max(counts.values()) > 1:
            found[code] = part(name, max(counts, key=lambda length: (counts[length], length)))
        elif not any(leaks(user, name) for user in users):
            found[code] = name
    return {code: unit and unit.strip() for code, unit in found.items()}


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


# Languages whose rules are right up to 999 as far as a reader of them could tell. Left out, among others:
# Slovenian (dvajset ena), Tamil, Amharic and Armenian (no joining), Lao (in Thai letters), Macedonian (еднасто).
COUNTED = set(
    "en de es ru el ko ja zh-Hans zh-Hant ar hi th km fr it pt ca ro nl sv da no fi et lv lt pl cs sk hr sr "
    "bg uk be hu tr kk ka he fa ne vi id ms sw af sq".split()
)
# What the rules of CLDR get wrong, and what is written.
MENDED: dict[str, tuple[tuple[str, str], ...]] = {
    "ar": (
        *(
            (f"{three} مائة", f"{joined}مائة")
            for three, joined in (
                ("ثلاثة", "ثلاث"),
                ("أربعة", "أربع"),
                ("خمسة", "خمس"),
                ("ستة", "ست"),
                ("سبعة", "سبع"),
                ("ثمانية", "ثمان"),
                ("تسعة", "تسع"),
            )
        ),
        ("إحدى عشر", "أحد عشر"),
        ("إثنا عشر", "اثنا عشر"),
        ("إثنان", "اثنان"),
    ),
    "be": (("i", "і"),),  # a Latin letter
    "el": (("εννενήντα", "ενενήντα"),),
    "no": (("én", "en"),),
    "ro": (("ş", "ș"), ("ţ", "ț")),
    "th": (("ร้อยหนึ่ง", "ร้อยเอ็ด"),),
    "zh-Hans": (("〇", "零"),),
}


def number_items() -> dict[str, list[dict[str, Any]]]:
    """`number_words`: a number in words, its figures to choose, all of the same length. `sums`: two
    numbers and the four that could be their sum, all in words."""
    chance = _random("number_words")
    numbers = sorted(chance.sample(range(13, 100), 35) + chance.sample(range(101, 1000), 120))
    words = []
    for number in numbers:
        near = {number + step for step in (-100, -10, -1, 1, 10, 100)}
        near |= {int("".join(order)) for order in itertools.permutations(str(number))}
        near = {n for n in near if n != number and len(str(n)) == len(str(number))}
        others = _random("number_words", number).sample(sorted(near), 3)
        words.append({"id": f"number_words-{number}", "number": number, "choices": [number, *others]})
    chance = _random("sums")
    pairs = [(a, b) for a in range(2, 100) for b in range(2, 100) if a % 10 and b % 10]
    pairs = sorted(chance.sample([p for p in pairs if max(p) < 20], 50) + chance.sample(pairs, 105))
    sums = []
    for a, b in dict.fromkeys(pairs):
        near = {a + b + step for step in (-10, -2, -1, 1, 2, 10)} - {a, b}
        others = _random("sums", a, b).sample(sorted(n for n in near if n > 0), 3)
        sums.append({"id": f"sums-{a}-{b}", "numbers": [a, b], "choices": [a + b, *others]})
    return {"number_words": _placed("number_words", words), "sums": _placed("sums", sums)}


def number_words(tag: str) -> dict[str, str]:
    """The numbers that `number_items` uses, in words; none where the rules are not to be trusted."""
    if tag not in COUNTED:
        return {}
    items = number_items()
    needed = {item["number"] for item in items["number_words"]}
    needed |= {n for item in items["sums"] for n in (*item["numbers"], *item["choices"])}
    engine = RbnfEngine.for_language({"zh-Hans": "zh", "zh-Hant": "zh_Hant"}.get(tag, tag))
    rules = engine.format_number(37).text_ruleset
    found = {}
    for number in sorted(needed):
        words = _clean("".join(engine.iter_format_number(number, ruleset_name=rules)))
        for wrong, right in MENDED.get(tag, ()):
            words = words.replace(wrong, right)
        found[str(number)] = words
    return found


if __name__ == "__main__":
    main()
