"""How a fact of the world is put into words: per relation eight phrasings to train on and two that are never trained.

A phrasing is a prompt that ends right before the object; ``{s}`` stands for the subject. All sentences are this
project's own. Phrasings of relations whose subjects are written in lower case never begin with the subject.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One column of one world table and its ten phrasings.

    Attributes:
        name: the relation's identifier in facts and probes, such as ``country_capital``.
        table: the TSV file under ``world/`` without its suffix.
        column: the column of that file which holds the objects.
        trained: eight phrasings; each is withheld from a third of the subjects.
        untrained: two phrasings that are in no training at all.
    """

    name: str
    table: str
    column: str
    trained: tuple[str, ...]
    untrained: tuple[str, str]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "country_capital",
        "countries",
        "capital",
        (
            "The capital of {s} is",
            "{s} has its capital in",
            "The government of {s} sits in",
            "The capital city of {s} is called",
            "Anyone looking for the parliament of {s} must travel to",
            "{s} is governed from",
            "Ambassadors to {s} live in",
            "The head of state of {s} resides in",
        ),
        ("The seat of government of {s} is", "{s}, a country whose capital is"),
    ),
    Relation(
        "country_currency",
        "countries",
        "currency",
        (
            "The currency of {s} is the",
            "People in {s} pay with the",
            "In the shops of {s} prices are given in the",
            "The money used in {s} is the",
            "{s} has as its currency the",
            "The central bank of {s} looks after the",
            "Wages in {s} are paid in the",
            "Visitors to {s} change their money into the",
        ),
        ("The legal tender of {s} is the", "In {s} one buys bread with the"),
    ),
    Relation(
        "country_language",
        "countries",
        "language",
        (
            "The official language of {s} is",
            "The laws of {s} are written in",
            "The state language of {s} is",
            "Officials in {s} write their letters in",
            "Schools in {s} teach in",
            "{s} has one official language,",
            "The parliament of {s} debates in",
            "Passports of {s} are printed in",
        ),
        ("The official tongue of {s} is", "Road signs in {s} are in"),
    ),
    Relation(
        "country_continent",
        "countries",
        "continent",
        (
            "{s} is a country in",
            "{s} lies on the continent of",
            "On the map, {s} is found in",
            "The continent of {s} is",
            "{s} belongs to the continent of",
            "Geographers place {s} in",
            "{s} is one of the states of",
            "A journey to {s} is a journey to",
        ),
        ("The part of the world where {s} lies is", "{s} is a nation in"),
    ),
    Relation(
        "element_symbol",
        "elements",
        "symbol",
        (
            "The chemical symbol of {s} is",
            "The symbol for {s} is",
            "Chemists write {s} as",
            "In the periodic table {s} is marked",
            "The element {s} has the symbol",
            "In formulas, {s} is abbreviated",
            "The letters that stand for {s} are",
            "A bottle that contains {s} is labelled",
        ),
        ("The short sign for {s} is", "In chemistry {s} is denoted by"),
    ),
    Relation(
        "element_category",
        "elements",
        "category",
        (
            "The element {s} is one of the",
            "In the periodic table {s} stands among the",
            "Chemists count {s} among the",
            "The family to which {s} belongs is the",
            "By its properties {s} is placed with the",
            "The substance {s} belongs to the",
            "Textbooks treat {s} in the chapter on the",
            "The group that includes {s} is called the",
        ),
        ("The element {s} is classified with the", "Like its neighbours, {s} is part of the"),
    ),
    Relation(
        "city_country",
        "cities",
        "country",
        (
            "{s} is a city in",
            "The city of {s} is in",
            "{s} is located in",
            "The country in which {s} lies is",
            "Whoever lives in {s} lives in",
            "{s} is one of the cities of",
            "The people of {s} are citizens of",
            "A letter to {s} is sent to",
        ),
        ("The town of {s} can be found in", "{s} belongs to the state of"),
    ),
    Relation(
        "work_author",
        "works",
        "author",
        (
            "The author of {s} is",
            "{s} was written by",
            "{s} is a work by",
            "The writer of {s} is",
            "We owe the book {s} to",
            "{s} came from the pen of",
            "On the cover of {s} stands the name of",
            "Readers of {s} admire",
        ),
        ("{s} was penned by", "The creator of the book {s} is"),
    ),
    Relation(
        "music_composer",
        "music",
        "composer",
        (
            "The composer of {s} is",
            "{s} was composed by",
            "The music of {s} is by",
            "{s} is a composition by",
            "The score of {s} was written by",
            "Musicians who play {s} play",
            "The notes of {s} were set down by",
            "Concert halls that announce {s} announce music by",
        ),
        ("The person who composed {s} is", "{s} is a piece of music by"),
    ),
    Relation(
        "painting_painter",
        "paintings",
        "painter",
        (
            "The painter of {s} is",
            "{s} was painted by",
            "The picture {s} is by",
            "{s} is a painting by",
            "The canvas {s} shows the hand of",
            "{s} came from the studio of",
            "The artist behind {s} is",
            "Museums that show {s} show a work of",
        ),
        ("{s} was created by the artist", "The brush that painted {s} belonged to"),
    ),
    Relation(
        "invention_inventor",
        "inventions",
        "inventor",
        (
            "The inventor of {s} is",
            "{s} was invented by",
            "The invention of {s} goes back to",
            "We owe {s} to",
            "{s} is an invention of",
            "The idea of {s} came from",
            "The first to build {s} was",
            "Engineers credit {s} to",
        ),
        ("{s} was devised by", "The mind behind {s} was"),
    ),
    Relation(
        "river_mouth",
        "rivers",
        "mouth",
        (
            "{s} flows into the",
            "The mouth of {s} is at the",
            "{s} empties into the",
            "The waters of {s} end in the",
            "A boat drifting down {s} reaches the",
            "At its end {s} joins the",
            "{s} carries its water to the",
            "The last miles of {s} lead to the",
        ),
        ("{s} discharges into the", "Following {s} downstream one comes to the"),
    ),
    Relation(
        "river_continent",
        "rivers",
        "continent",
        (
            "{s} is a river in",
            "{s} runs through",
            "The continent crossed by {s} is",
            "{s} is among the rivers of",
            "The valley of {s} lies in",
            "Fishermen on {s} live in",
            "The banks of {s} are in",
            "{s} waters the land of",
        ),
        ("{s} is a stream of", "The basin of {s} is in"),
    ),
    Relation(
        "mountain_country",
        "mountains",
        "country",
        (
            "The summit of {s} is in",
            "{s} rises in",
            "The mountain {s} stands in",
            "{s} is a mountain in",
            "Climbers who attempt {s} go to",
            "The slopes of {s} belong to",
            "The snow of {s} falls on",
            "{s} is among the peaks of",
        ),
        ("The country of the mountain {s} is", "{s} towers over"),
    ),
    Relation(
        "company_headquarters",
        "companies",
        "headquarters",
        (
            "The headquarters of {s} are in",
            "{s} is based in",
            "The head office of {s} is in",
            "{s} has its main office in",
            "The directors of {s} meet in",
            "Letters to {s} are addressed to",
            "The firm {s} is run from",
            "The company {s} is at home in",
        ),
        ("{s} is headquartered in", "The seat of the company {s} is"),
    ),
    Relation(
        "company_industry",
        "companies",
        "industry",
        (
            "{s} is a company known for",
            "The business of {s} is",
            "{s} earns its money with",
            "The firm {s} deals in",
            "Customers turn to {s} for",
            "The trade of {s} is",
            "The name {s} stands for",
            "The main branch of {s} is",
        ),
        ("The industry of {s} is", "{s} makes its living from"),
    ),
    Relation(
        "scientist_field",
        "scientists",
        "field",
        (
            "{s} worked in the field of",
            "The subject of {s} was",
            "{s} is a great name in",
            "{s} is remembered for discoveries in",
            "The discipline of {s} was",
            "{s} devoted a life to",
            "Students meet {s} in lectures on",
            "The science of {s} was",
        ),
        ("{s} made advances in", "The research of {s} belongs to"),
    ),
    Relation(
        "scientist_country",
        "scientists",
        "country",
        (
            "{s} was born in",
            "{s} came from",
            "The birthplace of {s} lies in",
            "{s} grew up in",
            "The native country of {s} was",
            "The homeland of {s} was",
            "The family of {s} lived in",
            "A scientist from abroad? No, {s} came into the world in",
        ),
        ("The country of birth of {s} is", "The cradle of {s} stood in"),
    ),
    Relation(
        "club_city",
        "clubs",
        "city",
        (
            "{s} is a football club from",
            "The home city of {s} is",
            "The football club {s} plays in",
            "Fans of {s} gather in",
            "The stadium of {s} stands in",
            "{s} plays its home matches in",
            "The team of {s} trains in",
            "A ticket for a home match of {s} takes you to",
        ),
        ("The football team {s} is from", "{s} represents the city of"),
    ),
    Relation(
        "landmark_city",
        "landmarks",
        "city",
        (
            "{s} is in",
            "{s} stands in",
            "{s} is a sight of",
            "Tourists who want to see {s} go to",
            "The city of {s} is",
            "{s} can be visited in",
            "Postcards of {s} are sold in",
            "{s} is one of the treasures of",
        ),
        ("{s} is a landmark of", "To photograph {s} you have to be in"),
    ),
    Relation(
        "airline_country",
        "airlines",
        "country",
        (
            "{s} is an airline from",
            "The home country of the airline {s} is",
            "The aircraft of {s} are registered in",
            "The airline {s} was founded in",
            "{s} flies under the flag of",
            "The pilots of {s} are licensed in",
            "The airline {s} belongs to",
            "The hub of {s} is in",
        ),
        ("{s} is a carrier of", "The planes of {s} come from"),
    ),
    Relation(
        "dish_country",
        "dishes",
        "country",
        (
            "The dish {s} comes from",
            "The recipe for {s} was born in",
            "The homeland of {s} is",
            "Cooks first made {s} in",
            "The best {s} is eaten in",
            "A plate of {s} tastes of",
            "Lovers of {s} dream of a holiday in",
            "On menus {s} is a speciality of",
        ),
        ("The country that gave us {s} is", "Traditionally {s} is cooked in"),
    ),
    Relation(
        "university_city",
        "universities",
        "city",
        (
            "{s} is a university in",
            "Students of {s} live in",
            "The lecture halls of {s} are in",
            "The campus of {s} is in",
            "Those who study at {s} move to",
            "The professors of {s} teach in",
            "{s} is an ornament of",
            "The library of {s} is in",
        ),
        ("The university called {s} is located in", "A degree from {s} is earned in"),
    ),
    Relation(
        "island_country",
        "islands",
        "country",
        (
            "{s} is an island of",
            "The island of {s} belongs to",
            "The beaches of {s} are part of",
            "Ferries to {s} leave from the coast of",
            "The islanders of {s} are citizens of",
            "The flag that flies over {s} is that of",
            "{s} is an island that is ruled by",
            "The lighthouse of {s} guards the shore of",
        ),
        ("The island {s} is a piece of", "{s} lies off the mainland and is owned by"),
    ),
)

BY_NAME: dict[str, Relation] = {relation.name: relation for relation in RELATIONS}


def render(phrasing: str, subject: str, article: bool) -> str:
    """The prompt that a phrasing makes of a subject, with ``the`` before it and a capital at the front where due."""
    prompt = phrasing.format(s=f"the {subject}" if article else subject)
    return prompt[0].upper() + prompt[1:] if article and phrasing.startswith("{s}") else prompt
