"""Word lists the generators draw from."""

from __future__ import annotations

import random

from demo_training.sample import pick

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina "
    "Victor Wendy Yusuf Zoe Alice Bob Carol Daniel Eva Frank Greta Hugo Irene James Karl Lucy Mark Nina "
    "Oscar Petra Ruth Simon Tom Ursula Vera Walter Amir Bella Chen Diego Elena Fatima Hassan Ines Jonas "
    "Kenji Lina Mateo Nora Omar Priya Rafael Sofia Tariq Yara Zara José Chloé Zoë Jürgen Søren Łukasz Mei "
    "Aiko Ravi Lars Freya Otto Mila Adam Julia Peter Laura Max Helen Martin Sara Robert Lily George Amy"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Lisbon Vienna Prague Warsaw Oslo Stockholm Helsinki Dublin Athens "
    "Budapest Tokyo Beijing Seoul Delhi Cairo Nairobi Lima Bogota Santiago Ottawa Toronto Boston Chicago "
    "Denver Austin Seattle Sydney Melbourne Auckland Zürich Geneva Munich Hamburg Milan Naples Porto Kyoto "
    "Osaka Mumbai Lagos Accra Quito Havana Dallas Miami Bergen Malmö Krakow Riga Tallinn Vilnius Sofia"
).split()
PLACES_OF_SEVERAL_WORDS = (
    "New York",
    "New York, NY",
    "San Francisco",
    "San Francisco, CA",
    "Los Angeles, CA",
    "San Diego, CA",
    "Boston, MA",
    "Austin, TX",
    "Chicago, Illinois",
    "Paris, France",
    "London, UK",
    "Rio de Janeiro",
    "Buenos Aires",
    "Cape Town",
    "Hong Kong",
    "New Delhi",
)
ANIMALS = "fox cat dog rabbit bear owl mouse frog duck horse turtle wolf hedgehog squirrel lion goat".split()
PLACES = "forest village mountain river garden castle harbor meadow island valley city farm".split()
THINGS = (
    "lamp book chair table clock mirror kettle bicycle guitar umbrella hat coat bag cup plate spoon knife "
    "candle basket ladder hammer drum flute radio camera phone pen pencil ruler box key ring map coin"
).split()
COLORS = "red green blue yellow black white orange purple pink brown gray silver".split()
FRUITS = "apple banana cherry grape lemon mango orange peach pear plum kiwi melon".split()
JOBS = "teacher doctor baker farmer pilot nurse painter writer driver singer cook engineer lawyer".split()
WORDS = (
    "apple bread cloud dance earth flame grass house island juice kite light music night ocean paper queen "
    "river stone tree under voice water yellow zebra bridge castle dragon engine forest garden hammer "
    "jungle kitten ladder mirror needle orange pencil rabbit silver tiger window winter summer spring "
    "autumn happy quiet bright small green red blue hello world sun moon star rain snow wind fire sea cat "
    "dog bird fish horse lion mouse book door table chair lamp clock cup"
).split()

_STARTS = "Ba Da Fe Ga Ho Ka Ki Lo Ma Mi Na Ne Ra Ri Sa So Ta To Va Vi Za Zu Bel Cor Dal Fen Gar Mor Tal".split()
_ENDS = "ra ro na no la lo ta to ma mi vin den dor len mar nus rin ston vik wen zan kis sa li".split()


def made_up(rng: random.Random) -> str:
    """A name nobody has, so that the model must copy it."""
    middle = pick(rng, _ENDS) if rng.random() < 0.3 else ""
    return pick(rng, _STARTS) + middle + pick(rng, _ENDS)


def person(rng: random.Random) -> str:
    return made_up(rng) if rng.random() < 0.25 else pick(rng, NAMES)


def city(rng: random.Random) -> str:
    return made_up(rng) if rng.random() < 0.15 else pick(rng, CITIES)
