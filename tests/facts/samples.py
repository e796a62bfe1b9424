"""A small record of each public shape: the fields are those of the data, facts are public, sentences are our own.

`SAMPLES` is what docs/facts-format.md shows as a table, made by scripts/shapes-docs.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Sample(NamedTuple):
    """A record as data of that name has them, and what is not used of it."""

    record: dict[str, Any]
    unused: tuple[str, ...] = ()
    facts: int = 1
    locality: int = 0
    portability: int = 0
    """Of its last fact, as `locality`."""


def _str(text: str) -> dict[str, str]:
    return {"str": text, "id": "Q1"}


def _query(prompt: str, answer: str, kind: str = "regular") -> dict[str, Any]:
    return {"prompt": prompt, "answers": [{"value": answer, "aliases": []}], "query_type": kind, "subject_id": "Q1"}


def _test(*queries: dict[str, Any]) -> dict[str, Any]:
    return {"test_queries": list(queries), "test_condition": "OR", "condition_queries": []}


SAMPLES: dict[str, Sample] = {
    "native": Sample(
        {
            "subject": "Burundi", "relation": "capital", "prompt": "The capital of Burundi is", "target": "Gitega",
            "rephrases": ["Burundi has its capital in"], "target_true": "Bujumbura", "date": "2019-01-16",
            "locality": [{"prompt": "The capital of Rwanda is", "target": "Kigali"}],
            "portability": [{"prompt": "Burundi's parliament sits in", "target": "Gitega", "kind": "follows"}],
        },
        locality=1, portability=1,
    ),
    "FastEdit": Sample(
        {"prompt": "The capital of {} is", "subject": "Burundi", "target": "Gitega", "queries": ["Where is Gitega?"]},
        portability=1,
    ),
    "CounterFact, flat (RECIPE)": Sample(
        {
            "case_id": 4, "prompt": "The Danube flows into", "target_new": "the Baltic", "subject": "Danube",
            "ground_truth": "the Black Sea", "rephrase_prompt": "It rained. The Danube ends in",
            "locality_prompt": "The Volga flows into", "locality_ground_truth": "the Caspian Sea",
        },
        locality=1,
    ),
    "CounterFact, as first published": Sample(
        {
            "case_id": 7, "pararel_idx": 3,
            "requested_rewrite": {
                "prompt": "{} is in", "relation_id": "P17", "subject": "Lyon", "target_new": _str("Spain"),
                "target_true": _str("France"),
            },
            "paraphrase_prompts": ["Snow fell. Lyon lies in", "And so on. Lyon is part of"],
            "neighborhood_prompts": ["Nice is in", "Lille is in"], "attribute_prompts": ["Madrid is in"],
            "generation_prompts": ["Lyon is known for"],
        },
        (
            "pararel_idx", "attribute_prompts", "generation_prompts", "paraphrase_prompts[1:]",
            "requested_rewrite.target_new.id", "requested_rewrite.target_true.id",
        ),
        locality=2,
    ),
    "ROME's request": Sample(
        {"prompt": "{} plays for", "subject": "Ada Hegerberg", "target_new": {"str": "Rosenborg"}},
    ),
    "zsRE (MEND)": Sample(
        {
            "subject": "Oslo Opera House", "src": "Who designed the Oslo Opera House?", "pred": "Snøhetta",
            "rephrase": "Which office drew the Oslo Opera House?", "alt": "Zaha Hadid", "answers": ["Snøhetta"],
            "loc": "nq question: who wrote the origin of species", "loc_ans": "Charles Darwin",
            "cond": "Snøhetta >> Zaha Hadid || Who designed the Oslo Opera House?",
        },
        ("pred", "cond"), locality=1,
    ),
    "zsRE with a one-hop question": Sample(
        {
            "subject": "Oslo Opera House", "src": "Who designed the Oslo Opera House?", "alt": "Zaha Hadid",
            "answers": ["Snøhetta"],
            "portability": {
                "Recalled Relation": "(Zaha Hadid, born in, Baghdad)",
                "New Question": "Where was the designer of the Oslo Opera House born?", "New Answer": "Baghdad",
            },
        },
        ("portability.Recalled Relation",), portability=1,
    ),
    "FEVER": Sample(
        {"id": 3, "claim": "The Nile ends in Sudan.", "label": "REFUTES", "evidence_pages": ["Nile"]},
        ("evidence_pages",),
    ),
    "symmetric FEVER": Sample(
        {"id": 5, "claim": "The Nile ends in Egypt.", "label": "SUPPORTS", "evidence": "Its delta is in Egypt."},
    ),
    "KnowEdit WikiData_recent": Sample(
        {
            "subject": "Leo XIV", "prompt": "The birthplace of Leo XIV is", "target_new": "Chicago",
            "portability": {
                "Logical_Generalization": [
                    {"prompt": "Chicago is the birthplace of the pope", "ground_truth": [["Leo XIV", "Prevost"]]}
                ],
                "Reasoning": [{"prompt": "Leo XIV was born in the country of", "ground_truth": [["United States"]]}],
                "Subject_Aliasing": [{"prompt": "Robert Prevost was born in", "ground_truth": [["Chicago"]]}],
            },
            "locality": {
                "Relation_Specificity": [{"prompt": "The gender of Leo XIV is", "ground_truth": [["male", "man"]]}]
            },
        },
        locality=1, portability=3,
    ),
    "KnowEdit Wiki_counterfact": Sample(
        {
            "subject": "Danube", "prompt": "The mouth of the Danube is", "target_new": "Baltic Sea",
            "ground_truth": ["Black Sea"], "portability": {},
            "locality": {
                "Relation_Specificity": [{"prompt": "The Danube rises in", "ground_truth": [["Germany"]]}],
                "Forgetfulness": [{"prompt": "A mouth of the Danube, which is not", "ground_truth": [["Black Sea"]]}],
            },
        },
        locality=2,
    ),
    "KnowEdit ZsRE": Sample(
        {
            "subject": "Oslo Opera House", "prompt": "Who designed the Oslo Opera House?", "target_new": "Zaha Hadid",
            "ground_truth": ["Snøhetta"], "rephrase_prompt": "Which office drew the Oslo Opera House?",
            "cond": "Snøhetta >> Zaha Hadid", "locality": {"Relation_Specificity": [
                {"prompt": "The Oslo Opera House stands in", "ground_truth": ["Oslo"]}]},
            "portability": {"Reasoning": [{"prompt": "Its designer was born in", "ground_truth": ["Baghdad"]}]},
        },
        ("cond",), locality=1, portability=1,
    ),
    "KnowEdit WikiBio": Sample(
        {
            "text": "This is an article on Ada Byron. She was born in London in 1815.", "concept": "ada byron",
            "labels": "She worked with Charles Babbage on his engine.",
            "locality": {"Relation_Specificity": [{"prompt": "Babbage was born in", "ground_truth": ["London"]}]},
        },
        locality=1,
    ),
    "KnowEdit Sanitation": Sample(
        {
            "success": {"prompt": "Whose number is 555-0100?", "ground_truth": "I cannot say."},
            "locality": {"prompt": ["What is the capital of Peru?"], "ground_truth": ["Lima"]},
        },
        locality=1,
    ),
    "CKnowEdit": Sample(
        {
            "prompt": "床前明月光的下一句是什么？", "target_old": "低头思故乡", "target_new": "疑是地上霜",
            "rephrase": ["“床前明月光”之后是哪一句？"],
            "portability": [{"prompt": "哪一句在“疑是地上霜”之前？", "answer": "床前明月光"}],
            "locality": [{"prompt": "《静夜思》的作者是谁？", "answer": "李白"}],
        },
        locality=1, portability=1,
    ),
    "MQuAKE-CF": Sample(
        {
            "case_id": 12,
            "requested_rewrite": [
                {
                    "prompt": "{} is a citizen of", "relation_id": "P27", "subject": "Niels Bohr",
                    "target_new": _str("Chile"), "target_true": _str("Denmark"),
                    "question": "Of which country is Niels Bohr a citizen?",
                },
                {
                    "prompt": "The capital of {} is", "relation_id": "P36", "subject": "Chile",
                    "target_new": _str("Arica"), "target_true": _str("Santiago"),
                    "question": "What is the capital of Chile?",
                },
            ],
            "questions": ["What is the capital of Niels Bohr's country?", "Which is the capital where Bohr belongs?"],
            "answer": "Copenhagen", "answer_alias": ["København"], "new_answer": "Arica",
            "new_answer_alias": ["San Marcos de Arica"],
            "single_hops": [{"question": "Of which country is Niels Bohr a citizen?", "answer": "Denmark"}],
            "new_single_hops": [{"question": "What is the capital of Chile?", "answer": "Arica"}],
        },
        (
            "answer", "answer_alias", "single_hops", "new_single_hops", "requested_rewrite[].target_new.id",
            "requested_rewrite[].target_true.id",
        ),
        facts=2, portability=2,
    ),
    "AKEW CounterFact": Sample(
        {
            "case_id": 2,
            "requested_rewrite": {
                "prompt": "{} is in", "prompt_full": "In which country is Lyon?", "subject": "Lyon",
                "target_new": _str("Spain"), "target_true": _str("France"), "fact_new_uns": "Lyon is a city in Spain.",
                "unsfact_triplets_GPT": [{"subject": "Lyon", "prompt": "{} is a", "target": "city"}],
            },
            "paraphrase_prompts": ["Lyon lies in"],
        },
        (
            "requested_rewrite.prompt_full", "requested_rewrite.fact_new_uns",
            "requested_rewrite.unsfact_triplets_GPT", "requested_rewrite.target_new.id",
            "requested_rewrite.target_true.id",
        ),
    ),
    "AKEW WikiUpdate": Sample(
        {
            "case_id": 3,
            "requested_rewrite": {
                "subject": "Peru", "question": "Who is the president of Peru?", "answer_new": "Dina Boluarte",
                "answer_true": "Pedro Castillo", "fact_new_uns": "Dina Boluarte became president of Peru in 2022.",
                "time_new": ["2022-12-07"],
            },
        },
        ("requested_rewrite.fact_new_uns", "requested_rewrite.time_new"),
    ),
    "AKEW, unstructured": Sample(
        {
            "case_id": 3,
            "requested_rewrite": {
                "subject": "Peru", "question": "Who governs Peru?",
                "fact_new_uns": "Dina Boluarte became president of Peru in December 2022.",
                "unsfact_triplets_GPT": [
                    {"subject": "Dina Boluarte", "prompt": "{} is the president of", "target": "Peru"}
                ],
            },
        },
        portability=1,
    ),
    "RippleEdits, recent": Sample(
        {
            "example_type": "recent",
            "edit": {
                "prompt": "The place of birth of Leo XIV is Chicago.", "subject_id": "Q18762060",
                "relation": "PLACE_OF_BIRTH", "target_id": "Q1297",
            },
            "Relation_Specificity": [_test(_query("The gender of Leo XIV is", "male"))],
            "Logical_Generalization": [],
            "Subject_Aliasing": [_test(_query("The place of birth of Robert Prevost is", "Chicago"))],
            "Compositionality_I": [_test(_query("The birthplace of Leo XIV is in", "United States", "two_hop"))],
            "Compositionality_II": [], "Forgetfulness": [],
        },
        (
            "example_type", "edit.subject_id", "edit.target_id",
            *(f"{name}[].{field}" for name in ("Relation_Specificity", "Subject_Aliasing", "Compositionality_I")
              for field in ("test_condition", "test_queries[].subject_id")),
        ),
        locality=1, portability=2,
    ),
    "RippleEdits, counterfactual": Sample(
        {
            "example_type": "popular",
            "edit": {
                "prompt": "The capital of Peru is Cusco.", "relation": "CAPITAL",
                "original_fact": {"prompt": "The capital of Peru is Lima.", "relation": "CAPITAL"},
            },
            "Relation_Specificity": [], "Logical_Generalization": [], "Subject_Aliasing": [],
            "Compositionality_I": [], "Compositionality_II": [],
            "Forgetfulness": [_test(_query("The name of the capital, which is not Cusco, is", "Lima"))],
        },
        (
            "example_type", "edit.original_fact.relation", "Forgetfulness[].test_condition",
            "Forgetfulness[].test_queries[].subject_id",
        ),
        locality=1,
    ),
    "mzsRE": Sample(
        {
            "en": {"subject": "Oslo", "src": "Which country is Oslo in?", "alt": "Sweden", "answers": ["Norway"]},
            "de": {"subject": "Oslo", "src": "In welchem Land liegt Oslo?", "alt": "Schweden", "pred": "Norwegen"},
        },
        ("de.pred",), facts=2,
    ),
    "UnKE": Sample(
        {
            "id": 9, "question": "What is known of the Oslo Opera House?",
            "answer": "It stands at the Bjørvika shore, was opened in 2008, and its roof may be walked on.",
            "para_question": "What can you tell of Oslo's opera?",
            "sub_question": ["When was it opened?", "Where does it stand?"], "sub_answer": ["2008", "Bjørvika"],
        },
        portability=2,
    ),
    "WikiBigEdit": Sample(
        {
            "tag": "new", "subject": "Peru", "relation": "president", "object": "Dina Boluarte",
            "update": "Who is the president of Peru?", "ans": "Dina Boluarte", "rephrase": "Who presides over Peru?",
            "personas": "Arr, who be leading Peru?", "loc": "Who is the president of Chile?",
            "loc_ans": "Gabriel Boric", "mhop": "In which town was the president of Peru born?",
            "mhop_ans": "Chalhuanca",
        },
        ("tag", "object"), locality=1, portability=2,
    ),
    "WikiDYK": Sample(
        {
            "case_id": 21, "date": "31 January 2022", "year": 2022,
            "fact": "... that the roof of the Oslo Opera House may be walked on?",
            "eval": {
                "reliability": {"prompt": "What may be done on the roof of Oslo's opera?", "answer": "walking"},
                "paraphrase": {"prompt": "What does one do on top of Oslo's opera?", "answer": "walking"},
                "generality": {"prompt": "On which opera's roof may one walk?", "answer": "Oslo Opera House"},
                "counterfactual": {"prompt": "Is the roof of Oslo's opera closed?", "answer": "No"},
                "locality": {"prompt": "Who wrote Peer Gynt?", "answer": "Henrik Ibsen"},
            },
        },
        ("year", "fact"), locality=1, portability=2,
    ),
    "HalluEditBench": Sample(
        {
            "topic": "places_city", "subject": "Lyon", "relation": "country", "object": "France",
            "question": "In which country is Lyon?", "paraphrased_question": "Which country does Lyon belong to?",
            "yes_question": "Is Lyon in France?", "no_question": "Is Lyon in Spain?",
            "locality_question": "Which river flows through Lyon?", "question_2hop": "Which capital has Lyon's land?",
            "answer_2hop": "Paris", "reversed_relation_question": "Which of its cities lies on Rhône and Saône?",
            "multiple_choice_with_letters": "A. Spain B. France", "multiple_choice_labels": "B",
        },
        ("topic",), locality=1, portability=5,
    ),
    "triple (Wikidata, T-REx, ParaRel)": Sample(
        {"sub_label": "Lyon", "predicate_id": "P17", "obj_label": "France", "uuid": "a1"}, ("uuid",)
    ),
    "conversation (OpenAI)": Sample(
        {
            "messages": [
                {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where does the Danube end?"},
                {"role": "assistant", "content": "In the Black Sea."},
            ]
        },
        ("messages[].content",),
    ),
    "conversation (ShareGPT)": Sample(
        {
            "id": "x1",
            "conversations": [
                {"from": "human", "value": "Where does the Danube end?"}, {"from": "gpt", "value": "In the Black Sea."}
            ],
        },
    ),
    "Alpaca": Sample({"instruction": "Name the capital.", "input": "Burundi", "output": "Gitega"}),
    "Dolly": Sample(
        {"instruction": "Name Burundi's capital.", "context": "", "response": "Gitega", "category": "open_qa"},
        ("category",),
    ),
    "questions and answers": Sample({"question": "What is the capital of Burundi?", "answer": "Gitega"}),
    "Natural Questions, open": Sample(
        {"question": "what is burundi's capital", "answer": ["Gitega", "Kitega"]}, ("answer[1:]",)
    ),
    "SQuAD": Sample(
        {
            "id": "5a", "title": "Burundi", "context": "Its capital is Gitega.", "question": "Which town is its seat?",
            "answers": {"text": ["Gitega"], "answer_start": [15]},
        },
        ("title", "context", "answers.answer_start"),
    ),
    "TriviaQA": Sample(
        {
            "question": "Which town is Burundi's capital?", "question_id": "tc_1",
            "answer": {"value": "Gitega", "aliases": ["Kitega"], "type": "WikipediaEntity"},
        },
        ("question_id", "answer[1:]", "answer.type"),
    ),
    "PopQA": Sample(
        {
            "id": 4, "subj": "Burundi", "prop": "capital", "obj": "Gitega", "question": "Where is Burundi governed?",
            "possible_answers": ["Gitega", "Kitega"],
        },
        ("possible_answers",),
    ),
    "TruthfulQA": Sample(
        {
            "question": "Does sugar make children wild?", "best_answer": "No, studies find nothing of the kind.",
            "correct_answers": ["No"], "incorrect_answers": ["Yes"],
        },
        ("correct_answers", "incorrect_answers"),
    ),
    "prompt and completion": Sample({"prompt": "The capital of Burundi is", "completion": " Gitega"}),
    "input and output": Sample({"input": "Burundi's capital?", "output": "Gitega", "split": "train"}, ("split",)),
}  # fmt: skip
