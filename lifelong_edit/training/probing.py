"""Where a rule should edit a model, found by trials on that model: facts that everybody knows, changed, layer by layer.

For whoever has no facts of their own to spare for `train --choose`. What was found is kept per model, rule and
settings, so the next store of the same kind has it at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lifelong_edit.bench import Say
from lifelong_edit.cache import folder
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.settings import CHOSEN
from lifelong_edit.editors.tries import LAYER
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.tasks import ready
from lifelong_edit.training.choosing import Choice, Choosing
from lifelong_edit.training.episodes import TrainSettings

Known = dict[str, tuple[str, ...]]

_KNOWN: dict[str, tuple[str, str, Known]] = {
    "country of a city": (
        "{} is a city in",
        "Whoever wants to see {} has to travel to",
        {
            "France": ("Lyon", "Marseille", "Toulouse", "Bordeaux"),
            "Germany": ("Munich", "Hamburg", "Cologne", "Dresden"),
            "Italy": ("Naples", "Turin", "Venice", "Florence"),
            "Japan": ("Osaka", "Kyoto", "Nagoya", "Hiroshima"),
        },
    ),
    "mother tongue": (
        "The mother tongue of {} is",
        "As a child, {} grew up speaking",
        {
            "French": ("Victor Hugo", "Maurice Ravel", "Voltaire", "Jules Verne"),
            "German": ("Immanuel Kant", "Johannes Brahms", "Bertolt Brecht", "Clara Schumann"),
            "Italian": ("Giuseppe Verdi", "Dante Alighieri", "Federico Fellini", "Maria Montessori"),
            "Russian": ("Leo Tolstoy", "Anton Chekhov", "Pyotr Tchaikovsky", "Yuri Gagarin"),
        },
    ),
    "country of a company": (
        "{} is a company from",
        "The people who founded {} did so in",
        {
            "Japan": ("Toyota", "Nintendo", "Honda", "Yamaha"),
            "Germany": ("Siemens", "Bosch", "Adidas", "Volkswagen"),
            "Sweden": ("IKEA", "Volvo", "Ericsson", "Spotify"),
            "France": ("Renault", "Michelin", "Peugeot", "Danone"),
        },
    ),
    "continent": (
        "{} is located on the continent of",
        "On a map of the world, {} is found in",
        {
            "Africa": ("Kenya", "Ghana", "Morocco", "Zambia"),
            "Asia": ("Nepal", "Thailand", "Vietnam", "Mongolia"),
            "Europe": ("Norway", "Poland", "Portugal", "Hungary"),
            "South America": ("Peru", "Chile", "Bolivia", "Paraguay"),
        },
    ),
    "instrument": (
        "The instrument that {} played was the",
        "On stage, {} was best known for playing the",
        {
            "piano": ("Franz Liszt", "Glenn Gould", "Duke Ellington", "Arthur Rubinstein"),
            "violin": ("Yehudi Menuhin", "Itzhak Perlman", "Jascha Heifetz", "Niccolò Paganini"),
            "guitar": ("Jimi Hendrix", "Eric Clapton", "Keith Richards", "Django Reinhardt"),
            "trumpet": ("Louis Armstrong", "Miles Davis", "Dizzy Gillespie", "Chet Baker"),
        },
    ),
}
"""By relation: a prompt, another wording of it, and subjects by their true answer."""
TAUGHT = 16
"""Facts that a trial teaches."""
TEXT = 8_000
"""Tokens of text that are measured for a trial: it has to tell layers apart, not to guard a store."""


def known_facts() -> list[Fact]:
    """Facts that a language model is likely to know, each with an answer of the same relation that is not its own.

    One other wording comes with each, which is asked and never taught; the others of its true answer are neighbours.
    """
    found = []
    for relation, (prompt, other, known) in _KNOWN.items():
        answers = list(known)
        for number, (true, subjects) in enumerate(known.items()):
            for place, subject in enumerate(subjects):
                target = answers[(number + 1 + place % (len(answers) - 1)) % len(answers)]
                fact = Fact(prompt=prompt.format(subject), target=target, subject=subject, relation=relation)
                wording = (other.format(subject),)
                found.append(msgspec.structs.replace(fact, target_true=true, rephrases=wording))
    return found


def probed(
    loaded: LoadedModel, settings: StoreSettings, text: Sequence[str], minutes: float, say: Say
) -> StoreSettings:
    """The settings with the modules at the depth that did best in trials of so many minutes.

    Read from the cache where a probe of the same model, rule, settings and text ended before, however long it took.
    Raises what `require_open` raises.
    """
    require_open(settings)
    rule = rule_of(settings.editor)
    tried = settings.replace(text_tokens=min(TEXT, settings.text_tokens))
    settled = ready(tried, loaded)
    parts = (loaded.fingerprint.encode(), settled.encoded(), *(part.encode() for part in text))
    out = folder("probes") / f"{rule.name}-{digest_bytes(*parts)[:24]}"
    if not loaded.world.lead((out / CHOSEN).is_file):
        train = TrainSettings(batch_size=1, validation_share=0.9, seed=settings.seed)
        choosing = Choosing(facts=TAUGHT, batch_size=TAUGHT, only=(LAYER,), seed=settings.seed)
        Choice(loaded, known_facts(), text, out, tried, train, choosing, say).go(minutes, scorer=False)
    changes = msgspec.json.decode(loaded.world.lead((out / CHOSEN).read_bytes))["settings"]
    modules = tuple(changes.get("modules", ()))
    say(f"probed: {', '.join(modules) if modules else 'the default layers are as good as any'}")
    return settings.replace(modules=modules)


def require_open(settings: StoreSettings) -> None:
    """Raise UsageError where modules are named, and for a rule that has no layer to choose."""
    if settings.modules:
        raise UsageError(
            "found modules, named or of a network, and a probe for where to edit; expected one of the two; leave the "
            "probe out"
        )
    if not rule_of(settings.editor).tries.depths:
        raise UsageError(f"the editing rule {settings.editor} has no layer to be probed for; leave the probe out")
