"""Some 240 facts in seven relations, each with phrasings that end right before the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Relation:
    """`answers`: subject -> answer, one word each; `phrasings` hold one `{}` for the subject."""

    name: str
    phrasings: tuple[str, ...]
    answers: Mapping[str, str]


def _table(text: str) -> dict[str, str]:
    """Entries, separated by `;`, as a dict: the last word is the answer, the words before it the subject."""
    entries = (entry.split() for entry in text.split(";") if entry.strip())
    return {" ".join(words[:-1]): words[-1] for words in entries}


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "capital",
        (
            "The capital of {} is",
            "The capital city of {} is",
            "{}'s capital is",
            "{}'s capital city is called",
            "In {}, the capital is",
            "The government of {} sits in",
            "The king of {} lived in the capital,",
            "Everyone in {} knows the capital,",
            "Question: What is the capital of {}? Answer:",
            "As for {}, its capital is",
        ),
        _table(
            """France Paris; Germany Berlin; Italy Rome; Spain Madrid; Portugal Lisbon; England London; Scotland
            Edinburgh; Ireland Dublin; Wales Cardiff; Norway Oslo; Sweden Stockholm; Denmark Copenhagen; Finland
            Helsinki; Poland Warsaw; Austria Vienna; Hungary Budapest; Greece Athens; Turkey Ankara; Russia Moscow;
            Ukraine Kiev; Belgium Brussels; Switzerland Bern; Egypt Cairo; Kenya Nairobi; Nigeria Abuja; Morocco
            Rabat; Cuba Havana; Canada Ottawa; Chile Santiago; Peru Lima; Colombia Bogota; Japan Tokyo; China
            Beijing; India Delhi; Thailand Bangkok; Vietnam Hanoi; Korea Seoul; Iran Tehran; Iraq Baghdad; Syria
            Damascus; Lebanon Beirut; Israel Jerusalem; Pakistan Islamabad; Nepal Kathmandu; Indonesia Jakarta;
            Australia Canberra; Jamaica Kingston; Bulgaria Sofia; Romania Bucharest; Serbia Belgrade; Croatia
            Zagreb"""
        ),
    ),
    Relation(
        "language",
        (
            "The language of {} is",
            "The official language of {} is",
            "People in {} speak",
            "In {}, people speak",
            "Children in {} learn to read in",
            "The newspapers of {} are written in",
            "In the streets of {} one hears",
            "The poets of {} wrote in",
            "Question: What language is spoken in {}? Answer:",
            "Someone who grew up in {} speaks",
        ),
        _table(
            """France French; Germany German; Italy Italian; Spain Spanish; Portugal Portuguese; England English;
            Norway Norwegian; Sweden Swedish; Denmark Danish; Finland Finnish; Poland Polish; Austria German;
            Hungary Hungarian; Greece Greek; Turkey Turkish; Russia Russian; Ukraine Ukrainian; Egypt Arabic;
            Morocco Arabic; Cuba Spanish; Mexico Spanish; Brazil Portuguese; Argentina Spanish; Chile Spanish; Peru
            Spanish; Colombia Spanish; Japan Japanese; China Chinese; India Hindi; Thailand Thai; Vietnam
            Vietnamese; Korea Korean; Iraq Arabic; Syria Arabic; Israel Hebrew; Nepal Nepali; Indonesia Indonesian;
            Australia English; Jamaica English; Bulgaria Bulgarian; Romania Romanian; Serbia Serbian; Croatia
            Croatian"""
        ),
    ),
    Relation(
        "continent",
        (
            "{} is a country in",
            "{} is in",
            "{} lies in",
            "On the map, {} is found in",
            "The country of {} is part of",
            "The continent of {} is",
            "{} belongs to the continent of",
            "To see {}, you must travel to",
            "Question: On which continent is {}? Answer:",
            "The mountains of {} are in",
        ),
        _table(
            """France Europe; Germany Europe; Italy Europe; Spain Europe; Portugal Europe; England Europe; Scotland
            Europe; Ireland Europe; Norway Europe; Sweden Europe; Finland Europe; Poland Europe; Austria Europe;
            Hungary Europe; Greece Europe; Belgium Europe; Romania Europe; Serbia Europe; Croatia Europe; Egypt
            Africa; Kenya Africa; Nigeria Africa; Morocco Africa; Ghana Africa; Ethiopia Africa; Tanzania Africa;
            Cuba America; Canada America; Mexico America; Brazil America; Argentina America; Chile America; Peru
            America; Colombia America; Jamaica America; Japan Asia; China Asia; India Asia; Thailand Asia; Vietnam
            Asia; Korea Asia; Iran Asia; Iraq Asia; Syria Asia; Israel Asia; Pakistan Asia; Nepal Asia; Indonesia
            Asia"""
        ),
    ),
    Relation(
        "landmark",
        (
            "{} is in",
            "{} is in the city of",
            "{} can be seen in",
            "{} stands in the middle of",
            "To visit {}, we went to",
            "The city of {} is",
            "Every year many people come to see {} in",
            "He took a photo of {} in",
            "Question: Where is {}? Answer: in",
            "The famous landmark {} is found in",
        ),
        _table(
            """the Eiffel Tower Paris; the Louvre Paris; the Colosseum Rome; the Trevi Fountain Rome; the Big Ben
            London; the Tower Bridge London; the Brandenburg Gate Berlin; the Kremlin Moscow; the Acropolis Athens;
            the Prado Madrid; the Little Mermaid Copenhagen; the Blue Mosque Istanbul; the Opera House Sydney; the
            Forbidden City Beijing; the Rialto Bridge Venice; the White House Washington; the Space Needle Seattle;
            the Atomium Brussels; the Belvedere Vienna; the Vasa Museum Stockholm; the Imperial Palace Tokyo; the
            Red Fort Delhi; the Grand Palace Bangkok; the Royal Mile Edinburgh; the Western Wall Jerusalem; the
            Freedom Trail Boston; the Willis Tower Chicago; the Leaning Tower Pisa"""
        ),
    ),
    Relation(
        "currency",
        (
            "The currency of {} is the",
            "The money of {} is called the",
            "In {}, people pay with the",
            "In {}, prices are given in the",
            "The coins of {} bear the name of the",
            "The bank of {} prints the",
            "Question: What is the currency of {}? Answer: the",
            "Before a trip to {}, buy some of its money, the",
            "{}'s currency is the",
        ),
        _table(
            """Japan yen; China yuan; India rupee; Russia ruble; Mexico peso; Chile peso; England pound; Egypt
            pound; Switzerland franc; Sweden krona; Norway krone; Denmark krone; Poland zloty; Hungary forint;
            Turkey lira; Thailand baht; Korea won; Israel shekel; Kenya shilling; Canada dollar; Australia dollar;
            Germany euro; France euro; Italy euro; Spain euro"""
        ),
    ),
    Relation(
        "young",
        (
            "A young {} is called a",
            "A baby {} is a",
            "The child of a {} is called a",
            "The mother {} looked after her",
            "Question: What is a young {} called? Answer: a",
            "On the farm, the young {} is known as a",
            "Before it grows up, a {} is a",
            "The little {}, still a",
            "We saw a {} with its",
        ),
        _table(
            """dog puppy; cat kitten; cow calf; horse foal; sheep lamb; pig piglet; duck duckling; goose gosling;
            lion cub; bear cub; goat kid; hen chick; deer fawn; frog tadpole; kangaroo joey; swan cygnet; wolf pup"""
        ),
    ),
    Relation(
        "opposite",
        (
            "The opposite of {} is",
            "If it is not {}, it is",
            "{} and its opposite,",
            "Not {} but",
            "Question: What is the opposite of {}? Answer:",
            "What was once {} is now",
            "The word {} means the reverse of",
            "First it was {}, then it was",
            "Some like it {}, others like it",
        ),
        _table(
            """hot cold; big small; tall short; old young; fast slow; hard soft; dark light; early late; rich poor;
            happy sad; strong weak; wet dry; clean dirty; full empty; high low; good bad; open closed; loud quiet;
            near far; right wrong; thick thin; sweet bitter; wide narrow; deep shallow"""
        ),
    ),
)
