"""The embedded data set: made-up clinic notes with questions whose answers follow from the facts in the note.

A `Visit` is drawn first, its note is worded from it, and `verdict` derives every answer from the visit.
Claims are drawn so that neither the question nor the note alone gives the answer away: each is equally often
true, false and unmentioned. The patients do not exist, and nothing here is medical advice.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tuneprune.errors import ConfigError, suggest

SEED = "tuneprune clinic 1"
VERDICTS = ("entailment", "contradiction", "neutral")
QA_ANSWERS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}
SPLITS = ("train", "val", "test")
SIZES = {
    "text": (2000, 150, 150),
    "nli": (3000, 200, 200),
    "qa": (3000, 200, 200),
    "summary": (1500, 80, 80),
}

SYMPTOMS = ("cough", "nausea", "vomiting", "swelling", "headache", "weakness", "itching", "chills")
COMPLAINTS = {  # complaint -> its test, its drugs
    "sore throat": ("throat swab", ("amoxicillin", "ibuprofen", "penicillin")),
    "chest pain": ("heart tracing", ("aspirin", "atenolol", "ibuprofen")),
    "short breath": ("chest film", ("prednisone", "furosemide", "amoxicillin")),
    "stomach pain": ("blood test", ("omeprazole", "ranitidine", "aspirin")),
    "burning urine": ("urine test", ("trimethoprim", "ibuprofen", "amoxicillin")),
    "back pain": ("spine film", ("ibuprofen", "codeine", "diazepam")),
    "knee pain": ("knee film", ("ibuprofen", "codeine", "prednisone")),
    "skin rash": ("blood test", ("prednisone", "cetirizine", "penicillin")),
    "dizziness": ("heart tracing", ("atenolol", "diazepam", "cetirizine")),
    "ear pain": ("hearing test", ("amoxicillin", "penicillin", "codeine")),
}
READINGS = {
    "temperature": ("raised", "low"),
    "pulse": ("fast", "slow"),
    "blood pressure": ("high", "normal"),
}
VALUES = READINGS | {
    "course": ("worse", "better"),
    "test": ("clear", "abnormal"),
    "dose": ("100 mg", "250 mg", "500 mg"),
    "plan": ("admitted", "sent home"),
    "visit": ("3 days", "one week", "two weeks", "one month"),
}
CLAIMED: dict[str, dict[tuple[str, str], int]] = {  # weights: mostly decided by one cue word, some harder to find
    "nli": {
        ("plan", "sent home"): 18,
        ("plan", "admitted"): 2,
        ("course", "worse"): 2,
        ("symptom", "cough"): 1,
        ("symptom", "nausea"): 1,
    },
    "qa": {
        ("plan", "admitted"): 18,
        ("temperature", "raised"): 2,
        ("pulse", "fast"): 2,
        ("test", "abnormal"): 2,
    },
}
MENTIONED = ("course", *READINGS, "test", "drug", "plan", "visit")
NUMBERS = ("two", "three", "four", "five", "six")
DURATIONS = tuple(f"{number} {unit}" for number in NUMBERS for unit in ("days", "weeks", "months"))
AGES = (
    *(f"in {{his}} {age}" for age in ("twenties", "thirties", "forties", "fifties", "sixties")),
    "over seventy",
)
INITIALS = "ABCDEFGHJKLMNPRSTVW"
PRONOUNS = (
    {"he": "he", "his": "his", "him": "him", "person": "man"},
    {"he": "she", "his": "her", "him": "her", "person": "woman"},
)

OPENINGS = (
    "{who}, {age}, came in with {complaint} that began {duration} ago.",
    "{who} is a {person} with {complaint} for {duration}.",
    "{who}, {age}, has had {complaint} for {duration}.",
    "A {person} {age} was seen for {complaint} of {duration}.",
)
ASIDES = (
    "{He} lives alone.",
    "{He} works as a cook.",
    "{He} came with {his} neighbor.",
    "{He} has never smoked.",
    "{He} has been here before.",
    "{His} mother had the same.",
)
PRESENT = ("{He} has {items}.", "{He} reports {items}.")
ABSENT = ("{He} denies {items}.", "{He} is free of {items}.")
READING = ("{Topic} is {value}.", "{Topic} was {value} today.", "On examination {topic} is {value}.")
WORDINGS = {
    "course": ("It is getting {value}.", "{He} feels {value} each day.", "The {complaint} is {value} than before."),
    "test": ("The {test} is {value}.", "A {test} was done and is {value}.", "{His} {test} is {value}."),
    "drug": ("{He} was given {value}{dose}.", "{He} takes {value}{dose}.", "We started {value}{dose}."),
    "plan": ("{He} was {value}.", "After this {he} was {value}.", "In the end {he} was {value}."),
    "visit": ("The next visit is in {value}.", "{He} returns in {value}.", "We see {him} again in {value}."),
}
HYPOTHESES = {
    "course": "The patient is getting {value}.",
    "plan": "The patient was {value}.",
    "temperature": "The temperature is {value}.",
    "pulse": "The pulse is {value}.",
    "test": "The {test} is {value}.",
    "symptom": "The patient has {value}.",
}
QUESTIONS = {
    "course": "Is the patient getting {value}?",
    "plan": "Was the patient {value}?",
    "temperature": "Is the temperature {value}?",
    "pulse": "Is the pulse {value}?",
    "test": "Is the {test} {value}?",
    "symptom": "Does the patient have {value}?",
}


@dataclass(frozen=True)
class Visit:
    """The facts of one made-up visit; symptoms in neither tuple and topics not in `values` are not mentioned."""

    who: str
    sex: int
    age: str
    complaint: str
    duration: str
    present: tuple[str, ...]
    absent: tuple[str, ...]
    values: dict[str, str]

    @property
    def split(self) -> str:
        """The split this combination of facts belongs to, by its hash; nine in ten are train."""
        facts = (self.complaint, self.duration, *sorted(self.present), self.values.get("plan", ""))
        bucket = hashlib.sha256("|".join(facts).encode()).digest()[0] % 20
        return {0: "val", 1: "test"}.get(bucket, "train")


@dataclass(frozen=True)
class Claim:
    """A claim about a visit: a symptom, or the value of a topic."""

    topic: str
    value: str


def verdict(visit: Visit, claim: Claim) -> str:
    """Whether `visit` makes `claim` true (entailment), false (contradiction) or leaves it open (neutral)."""
    if claim.topic == "symptom":
        if claim.value not in visit.present + visit.absent:
            return "neutral"
        return "entailment" if claim.value in visit.present else "contradiction"
    if claim.topic not in visit.values:
        return "neutral"
    return "entailment" if visit.values[claim.topic] == claim.value else "contradiction"


def draw_visit(rng: Random, split: str, accept: Callable[[Visit], bool]) -> Visit:
    """The next random visit that belongs to `split` and that `accept` accepts."""
    while True:
        complaint, (_, drugs) = rng.choice(tuple(COMPLAINTS.items()))
        symptoms = rng.sample(SYMPTOMS, 4)
        num_present, num_absent = rng.choice(((1, 0), (1, 1), (2, 0), (2, 1)))
        mentioned = rng.sample(MENTIONED, rng.randint(1, 4))
        if "drug" in mentioned and rng.random() < 0.7:
            mentioned.append("dose")
        visit = Visit(
            who=f"{rng.choice(INITIALS)}. {rng.choice(INITIALS)}.",
            sex=rng.randrange(2),
            age=rng.choice(AGES),
            complaint=complaint,
            duration=rng.choice(DURATIONS),
            present=tuple(symptoms[:num_present]),
            absent=tuple(symptoms[2 : 2 + num_absent]),
            values={topic: rng.choice(drugs if topic == "drug" else VALUES[topic]) for topic in mentioned},
        )
        if visit.split == split and accept(visit):
            return visit


def draw_claim(rng: Random, kind: str, split: str, wanted: str) -> tuple[Visit, Claim]:
    """A random visit and a claim of `kind` about it with the verdict `wanted`.

    The claim is drawn first, independently of `wanted`, so that the claim alone gives nothing away.
    """
    weights = CLAIMED[kind]
    claim = Claim(*rng.choices(tuple(weights), tuple(weights.values()))[0])
    return draw_visit(rng, split, lambda visit: verdict(visit, claim) == wanted), claim


def word_note(rng: Random, visit: Visit) -> str:
    """The note of `visit`: an opening, then its facts in partly shuffled order and varied wording."""
    words = dict(PRONOUNS[visit.sex])
    words |= {"He": words["he"].capitalize(), "His": words["his"].capitalize()}
    words |= {"age": visit.age.format(**words), "test": COMPLAINTS[visit.complaint][0], "complaint": visit.complaint}

    def say(wordings: tuple[str, ...], **more: str) -> str:
        return rng.choice(wordings).format(**words, **more)

    opening = say(OPENINGS, who=visit.who, duration=visit.duration)
    history = [say(PRESENT, items=" and ".join(visit.present))]
    history += [say(ABSENT, items=" or ".join(visit.absent))] if visit.absent else []
    if rng.random() < 0.2:
        history.append(say(ASIDES))
    values = visit.values
    dose = f" {values['dose']}" if "dose" in values else ""
    said = {
        topic: say(WORDINGS.get(topic, READING), topic=topic, Topic=topic.capitalize(), value=value, dose=dose)
        for topic, value in values.items()
        if topic != "dose"
    }
    history += [said.pop("course")] if "course" in said else []
    findings = [said.pop(topic) for topic in (*READINGS, "test") if topic in said]
    rng.shuffle(history)
    rng.shuffle(findings)
    return " ".join([opening, *history, *findings, *said.values()])


def summarize(visit: Visit) -> str:
    """Complaint, duration, main finding (the first abnormal one) and plan, in one sentence."""
    test, values = COMPLAINTS[visit.complaint][0], visit.values
    findings = [f"{values[topic]} {topic}" for topic in READINGS if values.get(topic, "normal") != "normal"]
    if values.get("test") == "abnormal":
        findings.insert(0, f"abnormal {test}")
    finding = (findings or [visit.present[0]])[0]
    return f"{visit.complaint.capitalize()} for {visit.duration} with {finding}, {values['plan']}."


def make_text(rng: Random, split: str, wanted: str) -> dict[str, str]:  # noqa: ARG001  (signature of MAKERS)
    """A note alone."""
    return {"text": word_note(rng, draw_visit(rng, split, lambda _: True))}


def make_nli(rng: Random, split: str, wanted: str) -> dict[str, str]:
    """A note and a statement that follows from it, contradicts it, or neither."""
    visit, claim = draw_claim(rng, "nli", split, wanted)
    hypothesis = HYPOTHESES[claim.topic].format(value=claim.value, test=COMPLAINTS[visit.complaint][0])
    return {"premise": word_note(rng, visit), "hypothesis": hypothesis, "answer": wanted}


def make_qa(rng: Random, split: str, wanted: str) -> dict[str, str]:
    """A note and a question that it answers with yes or no, or not at all (maybe)."""
    visit, claim = draw_claim(rng, "qa", split, wanted)
    question = QUESTIONS[claim.topic].format(value=claim.value, test=COMPLAINTS[visit.complaint][0])
    return {"question": question, "context": word_note(rng, visit), "answer": QA_ANSWERS[wanted]}


def make_summary(rng: Random, split: str, wanted: str) -> dict[str, str]:  # noqa: ARG001  (signature of MAKERS)
    """A note that states a plan, and its summary."""
    visit = draw_visit(rng, split, lambda visit: "plan" in visit.values)
    return {"text": word_note(rng, visit), "summary": summarize(visit)}


MAKERS = {"text": make_text, "nli": make_nli, "qa": make_qa, "summary": make_summary}


def records(kind: str, split: str) -> list[dict[str, str]]:
    """The records of one part of the embedded data set; the same in every process and on every machine.

    No combination of complaint, duration, symptoms and plan of one split occurs in another, in any kind.

    Args:
        kind: text {id, text}, nli {id, premise, hypothesis, answer}, qa {id, question, context, answer} or
            summary {id, text, summary}.

    Raises:
        ConfigError: there is no such kind or split.
    """
    if kind not in MAKERS:
        raise ConfigError(f"clinic: no kind `{kind}`; it has {', '.join(MAKERS)}.{suggest(kind, MAKERS)}")
    if split not in SPLITS:
        raise ConfigError(f"clinic: no split `{split}`; it has {', '.join(SPLITS)}.{suggest(split, SPLITS)}")
    rng = Random(f"{SEED}/{kind}/{split}")
    size, make = SIZES[kind][SPLITS.index(split)], MAKERS[kind]
    wanted = [VERDICTS[index % len(VERDICTS)] for index in range(size)]
    rng.shuffle(wanted)  # any slice of the records has about as many of each answer
    return [{"id": f"clinic-{kind}-{split}-{i}", **make(rng, split, answer)} for i, answer in enumerate(wanted)]
