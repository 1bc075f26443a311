"""The words of the prompt families, each a single token in Gemma's own vocabulary."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


WOMEN: tuple[str, ...] = (
    listed("""Mary Anna Alice Emma Sarah Laura Julia Kate Jane Susan Lisa Helen Emily Grace Lucy Rose Ruth Amy Eva Maria
    Clara Sophie Rachel Rebecca Linda Karen Nancy Betty Diana Olivia Hannah Jessica Amanda Nicole Victoria Elizabeth
    Margaret Barbara Patricia Jennifer Michelle Kelly Megan Erin Tina Monica Vanessa Charlotte Ella Nora Zoe Claire
    Alison Heather Holly Molly Paula Sandra Carol Donna""")
)
MEN: tuple[str, ...] = (
    listed("""John Tom James David Peter Paul Mark Luke Jack Sam Ben Bob Bill Dan Adam Simon Henry George Charles William
    Robert Richard Thomas Edward Frank Fred Harry Oliver Max Leo Oscar Daniel Michael Andrew Kevin Brian Steven Eric
    Jason Ryan Scott Greg Tony Victor Martin Philip Roger Alan Carl Joe Nick Matthew Anthony Jeremy Sean Keith Neil
    Ian Stephen Patrick""")
)
NAMES: tuple[str, ...] = WOMEN + MEN

OBJECTS: tuple[str, ...] = (
    listed("""drink book ring ball key letter map coin pen cup hat gift lamp bag box card flower apple basket bottle camera
    coat clock cookie doll drum flag fork glass guitar hammer knife magazine mirror necklace newspaper photo picture
    pillow plate present ribbon rope sandwich scarf shirt snack spoon stone ticket towel toy watch blanket bone
    computer kiss candle brush""")
)
PLACES: tuple[str, ...] = (
    listed("""store park school house garden office market station library restaurant hospital beach church river museum
    theatre bakery bank bridge cafe castle cinema farm field forest gym harbour hotel kitchen lake mountain palace
    port pool shop square stadium temple tower town valley village zoo airport factory""")
)
# Singular and plural of nouns that can be a subject.
NOUNS: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in listed("""key/keys cabinet/cabinets book/books teacher/teachers student/students doctor/doctors
    farmer/farmers lawyer/lawyers guard/guards pilot/pilots author/authors senator/senators manager/managers
    painting/paintings picture/pictures letter/letters boy/boys girl/girls dog/dogs cat/cats horse/horses bird/birds
    car/cars truck/trucks boat/boats ship/ships train/trains table/tables chair/chairs lamp/lamps window/windows
    door/doors wall/walls house/houses tower/towers bridge/bridges road/roads river/rivers mountain/mountains
    tree/trees flower/flowers garden/gardens field/fields farm/farms stone/stones cup/cups plate/plates
    bottle/bottles basket/baskets box/boxes bag/bags coat/coats hat/hats shirt/shirts shoe/shoes ring/rings
    clock/clocks map/maps song/songs story/stories poem/poems report/reports plan/plans idea/ideas toy/toys ball/balls
    doll/dolls drum/drums guitar/guitars king/kings queen/queens prince/princes soldier/soldiers sailor/sailors
    baker/bakers singer/singers dancer/dancers writer/writers painter/painters driver/drivers cook/cooks nurse/nurses
    judge/judges friend/friends neighbour/neighbours brother/brothers sister/sisters uncle/uncles aunt/aunts
    wolf/wolves fox/foxes bear/bears lion/lions tiger/tigers rabbit/rabbits duck/ducks goat/goats cow/cows pig/pigs
    apple/apples cake/cakes egg/eggs candle/candles mirror/mirrors pillow/pillows blanket/blankets coin/coins
    ticket/tickets camera/cameras phone/phones computer/computers machine/machines engine/engines wheel/wheels""")
)
COLOURS: tuple[str, ...] = listed("red blue green yellow black white brown pink purple orange grey silver gold")
NUMBERS: tuple[str, ...] = (
    listed("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen twenty
    thirty forty fifty sixty seventy eighty ninety""")
)

_WOMEN = frozenset(WOMEN)


def is_woman(name: str) -> bool:
    """Whether `name` is one of `WOMEN`."""
    return name in _WOMEN


def pronoun(name: str, woman: str, man: str) -> str:
    """`woman` or `man`, by the name: `pronoun("Anna", "she", "he")` is "she"."""
    return woman if is_woman(name) else man


def an(word: str) -> str:
    """A word with its article: "a lamp", "an apple"."""
    return f"{'an' if word[0].lower() in 'aeiou' or word == 'honest' else 'a'} {word}"
