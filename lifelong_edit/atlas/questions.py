"""The facts of the world as questions: four to each relation, beside the eight phrasings that end before the object.

A question is withheld from a third of the subjects, as a phrasing is (`world_tables.withheld_pairs`). All sentences are
this project's own.
"""

from __future__ import annotations

from lifelong_edit.atlas.world_tables import WorldFact, withheld_from, world_facts

QUESTIONS: dict[str, tuple[str, str, str, str]] = {
    "country_capital": (
        "What is the capital of {s}?",
        "Which city is the capital of {s}?",
        "Where does the government of {s} sit?",
        "From which city is {s} governed?",
    ),
    "country_currency": (
        "What is the currency of {s}?",
        "What do people in {s} pay with?",
        "Which money is used in {s}?",
        "In which currency are wages paid in {s}?",
    ),
    "country_language": (
        "What is the official language of {s}?",
        "In which language are the laws of {s} written?",
        "Which language do schools in {s} teach in?",
        "What is the state language of {s}?",
    ),
    "country_continent": (
        "On which continent is {s}?",
        "Which continent does {s} belong to?",
        "What is the continent of {s}?",
        "In which part of the world does {s} lie?",
    ),
    "element_symbol": (
        "What is the symbol of {s}?",
        "How do chemists write {s}?",
        "Which letters stand for {s} in the periodic table?",
        "What is the chemical symbol for {s}?",
    ),
    "element_category": (
        "To which group of elements does {s} belong?",
        "What kind of element is {s}?",
        "What is {s} counted among?",
        "Which family of elements has {s} as a member?",
    ),
    "city_country": (
        "In which country is {s}?",
        "Which country does the city of {s} belong to?",
        "Where in the world does one find {s}?",
        "What is the country of {s}?",
    ),
    "work_author": (
        "Who wrote {s}?",
        "Who is the author of {s}?",
        "By whom was {s} written?",
        "From whose pen did {s} come?",
    ),
    "music_composer": (
        "Who composed {s}?",
        "Who is the composer of {s}?",
        "By whom is the music of {s}?",
        "Who set down the notes of {s}?",
    ),
    "painting_painter": (
        "Who painted {s}?",
        "Who is the painter of {s}?",
        "By whom was {s} painted?",
        "Whose brush made {s}?",
    ),
    "invention_inventor": (
        "Who invented {s}?",
        "Who is the inventor of {s}?",
        "To whom do we owe {s}?",
        "Who was the first to build {s}?",
    ),
    "river_mouth": (
        "Into what does {s} flow?",
        "Where does {s} end?",
        "Which waters take in {s}?",
        "What lies at the mouth of {s}?",
    ),
    "river_continent": (
        "On which continent does {s} flow?",
        "Which continent does {s} cross?",
        "What is the continent of {s}?",
        "In which part of the world are the banks of {s}?",
    ),
    "mountain_country": (
        "In which country does {s} rise?",
        "Where do climbers of {s} go?",
        "Which country is {s} in?",
        "What is the country of {s}?",
    ),
    "company_headquarters": (
        "Where is the head office of {s}?",
        "In which city is {s} based?",
        "What is the home city of {s}?",
        "From where is {s} run?",
    ),
    "company_industry": (
        "What is the business of {s}?",
        "What does {s} earn its money with?",
        "What is {s} known for?",
        "Which trade is {s} in?",
    ),
    "scientist_field": (
        "In which field did {s} work?",
        "What was the science of {s}?",
        "What was the subject of {s}?",
        "To what did {s} devote a life?",
    ),
    "scientist_country": (
        "Where was {s} born?",
        "From which country did {s} come?",
        "What was the homeland of {s}?",
        "In which country did {s} grow up?",
    ),
    "club_city": (
        "From which city is the football club {s}?",
        "Where does {s} play its home matches?",
        "What is the home city of {s}?",
        "In which city is the stadium of {s}?",
    ),
    "landmark_city": (
        "In which city is {s}?",
        "Where can {s} be visited?",
        "Where do tourists go to see {s}?",
        "Which city has {s} among its sights?",
    ),
    "airline_country": (
        "From which country is the airline {s}?",
        "What is the home country of the airline {s}?",
        "Where was the airline {s} founded?",
        "Under which flag does {s} fly?",
    ),
    "dish_country": (
        "From which country does the dish {s} come?",
        "Where was {s} first cooked?",
        "What is the homeland of {s}?",
        "Where is the best {s} eaten?",
    ),
    "university_city": (
        "In which city is {s}?",
        "Where do students of {s} live?",
        "Where are the lecture halls of {s}?",
        "Which city is the home of {s}?",
    ),
    "island_country": (
        "To which country does the island of {s} belong?",
        "Which country rules {s}?",
        "Of which country are the islanders of {s} citizens?",
        "Whose flag flies over {s}?",
    ),
}


def asked(fact: WorldFact) -> tuple[str, ...]:
    """A fact in twelve ways: the eight phrasings of its relation, then the four questions."""
    return (*fact.prompts, *(fact.prompt(question) for question in QUESTIONS[fact.relation]))


def asked_pairs(*, withheld: bool) -> list[tuple[WorldFact, str]]:
    """Every (fact, way of asking) that is in no training of an encoder-decoder, or every one that is."""
    return [
        (fact, text)
        for fact in world_facts()
        for i, text in enumerate(asked(fact))
        if withheld_from(fact, i) is withheld
    ]
