"""Words for the corpus' prose that the prompt families do not have, by what they stand for."""

from __future__ import annotations

_TEXT: dict[str, str] = {
    "animal": """dog cat horse cow pig sheep goat duck hen goose rabbit fox wolf bear lion tiger mouse rat frog bird
        owl eagle crow swan deer donkey monkey elephant snake turtle fish whale shark bee ant spider butterfly snail
        squirrel camel parrot puppy kitten lamb calf""",
    "food": """bread cheese butter soup rice meat cake pie honey jam milk tea coffee juice salad pasta pizza
        chocolate sugar salt pepper cream fruit""",
    "counted": """apples pears plums grapes cherries oranges lemons bananas carrots onions potatoes beans tomatoes
        nuts eggs cookies biscuits mushrooms berries""",
    "job": """teacher doctor nurse farmer baker cook driver pilot sailor soldier judge lawyer singer dancer painter
        writer actor builder carpenter gardener tailor barber butcher fisherman hunter librarian mechanic plumber
        scientist student waiter postman dentist engineer photographer""",
    "relative": "mother father brother sister uncle aunt cousin grandmother grandfather neighbour friend teacher",
    "body": "hand arm leg foot head nose ear eye finger knee back shoulder tooth neck",
    "clothes": "hat coat scarf shirt dress jacket sweater belt skirt boots gloves shoes socks trousers",
    "room": "kitchen bedroom bathroom hall cellar attic garage dining living guest",
    "furniture": "table chair bed sofa desk shelf cupboard carpet stove bench drawer",
    "weather": "sunny rainy cloudy windy snowy foggy stormy cold hot warm cool dry wet",
    "season": "spring summer autumn winter",
    "month": "January February March April May June July August September October November December",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "few": "two three four five six seven eight nine ten",
    "feeling": """happy sad angry tired hungry thirsty afraid proud lonely excited bored worried calm surprised
        nervous glad sick sleepy curious jealous grateful ashamed""",
    "trait": """kind brave clever honest lazy funny shy polite rude patient strong weak wise silly careful gentle
        stubborn cheerful generous quiet loud famous rich poor young old tall""",
    "look": """big small little large tiny huge long short round flat heavy light new old broken clean dirty pretty
        ugly strange beautiful expensive cheap simple fine soft hard smooth rough bright dark empty full shiny dusty
        wooden golden""",
    "thing": """lamp book ring ball key letter map coin cup hat bag box flower basket bottle camera clock doll drum
        flag guitar knife mirror picture pillow ribbon rope scarf stone ticket watch blanket kite bell stick hammer
        ladder bucket umbrella violin piano trumpet whistle wallet envelope feather shell crown sword shield arrow
        candle jar pot pan bowl brush needle button""",
    "vehicle": "car bus train boat ship bicycle truck plane taxi tram cart wagon",
    "nature": """tree hill rock cave stream pond island desert waterfall cliff meadow path road wall fence gate sky
        moon sun star cloud shadow fire smoke snow rain wind""",
    "plant": "oak pine rose tulip daisy grass bush leaf root seed branch",
    "adverb": """slowly quickly quietly loudly carefully happily sadly gently suddenly politely bravely proudly
        nervously eagerly calmly softly angrily lazily badly well""",
    "often": "always often sometimes never usually rarely",
    "went": "went walked ran drove hurried rode travelled returned moved wandered marched",
    "did": """smiled laughed cried waited slept rested danced sang jumped stopped listened nodded shouted whispered
        worked played fell sneezed yawned blushed""",
    "took": """took found lost bought sold saw carried dropped broke fixed painted cleaned hid kept wanted liked opened
        touched pulled pushed lifted threw caught borrowed washed wrapped stole""",
    "met": "met saw helped called followed visited thanked hugged greeted loved hated missed knew watched taught",
    "ate": "ate cooked bought shared tasted wanted liked prepared finished",
    "doing": """reading writing singing dancing swimming running cooking painting fishing sleeping drawing walking
        hunting climbing sewing skating riding digging sailing farming""",
    "do": """read write sing dance swim run cook paint fish sleep draw walk hunt climb sew skate ride dig sail help
        learn leave stay talk""",
    "subject": """history music science geography art mathematics poetry law medicine physics chemistry grammar
        astronomy biology""",
    "game": "chess football tennis cards hockey basketball golf cricket",
    "group": "family team class crowd band army village council club",
    "material": "wood stone glass paper iron gold silver wool leather clay brick plastic steel cotton",
    "time": "morning afternoon evening night week month year moment hour minute summer winter",
    "idea": """plan secret story question answer problem reason dream promise joke lesson rule truth lie mistake
        surprise chance choice""",
    "illness": "cold fever cough headache",
    "tool": "saw hammer spade axe rake drill broom shovel net",
}
WORDS: dict[str, tuple[str, ...]] = {kind: tuple(text.split()) for kind, text in _TEXT.items()}
