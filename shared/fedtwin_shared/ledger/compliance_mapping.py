"""Where a report of a ledger is evidence for what laws and guidelines ask, and where it is none.

Design note: these are statements about documents of others, so each names its place there, says in our own words what
is asked, and draws the line. Nothing here is legal advice, and no row says that anything is complied with.

Sources: Regulation (EU) 2016/679, Articles 30 and 35; 45 CFR § 164.514; Regulation (EU) 2024/1689, Annex IV;
NIST SP 800-226, Guidelines for Evaluating Differential Privacy Guarantees (March 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One thing that is asked. evidence: what this report shows of it. missing: what it does not show."""

    source: str
    place: str
    asks: str
    evidence: str
    missing: str


GDPR: Final = "GDPR, Regulation (EU) 2016/679"
HIPAA: Final = "HIPAA Privacy Rule, 45 CFR § 164.514"
AI_ACT: Final = "EU AI Act, Regulation (EU) 2024/1689, Annex IV"
NIST: Final = "NIST SP 800-226 (March 2025)"

MAPPING: Final[tuple[Requirement, ...]] = (
    Requirement(
        source=GDPR,
        place="Art. 30(1)(a)",
        asks="name and contact details of controller, joint controllers, representative and data protection officer",
        evidence="none",
        missing="hospitals appear under short names and keys only; the record of processing must name them",
    ),
    Requirement(
        source=GDPR,
        place="Art. 30(1)(b), (c)",
        asks="purposes; categories of data subjects and of personal data",
        evidence="which studies were enrolled, by digest; their question, where the signed study is in the bundle",
        missing="the legal purpose and basis; the categories, which the signed study lists and this report does not",
    ),
    Requirement(
        source=GDPR,
        place="Art. 30(1)(d), (e)",
        asks="recipients; transfers to third countries and their safeguards",
        evidence="every answer recorded as released, with the key of its recipient",
        missing="where the holder of that key is, and who was given the model afterwards",
    ),
    Requirement(
        source=GDPR,
        place="Art. 30(1)(f)",
        asks="time limits for erasure, where possible",
        evidence="none",
        missing="retention and erasure belong to the hospital's store; what was released cannot be taken back",
    ),
    Requirement(
        source=GDPR,
        place="Art. 30(1)(g) with Art. 32(1)",
        asks="a general description of technical and organisational security measures",
        evidence="the measures that this report verified: a bounded privacy loss, an append-only ledger, witnesses",
        missing="access control, encryption at rest, staff, incident handling",
    ),
    Requirement(
        source=GDPR,
        place="Art. 35(7)(a), (b)",
        asks="a systematic description of the processing; an assessment of necessity and proportionality",
        evidence="what ran on patients, in which studies, how often, with how much noise",
        missing="the assessment itself, which weighs purposes against people",
    ),
    Requirement(
        source=GDPR,
        place="Art. 35(7)(c)",
        asks="an assessment of the risks to the rights and freedoms of data subjects",
        evidence="an upper bound on how much everything that was released can depend on one patient",
        missing="other risks: bias, wrong predictions, breaches inside a hospital; whether this bound is low enough",
    ),
    Requirement(
        source=GDPR,
        place="Art. 35(7)(d)",
        asks="measures envisaged to address the risks, and mechanisms to demonstrate compliance",
        evidence="every recorded entry kept the rules of the ledger, as somebody else has recomputed: this report",
        missing="that the data processed is anonymous (recital 26): a bound of ε is not by itself anonymity in law",
    ),
    Requirement(
        source=HIPAA,
        place="(b)(1) expert determination",
        asks="an expert determines that the risk of identification is very small, and documents methods and results",
        evidence="a documented method and result for an expert to use: unit, adjacency, ε, δ, mechanisms, assumptions",
        missing="the determination: no value of ε is by rule a very small risk, and this report is no expert",
    ),
    Requirement(
        source=HIPAA,
        place="(b)(2) safe harbor",
        asks="eighteen kinds of identifiers removed, and no actual knowledge that the rest could identify",
        evidence="none: noised sums are released and no records, which safe harbor was not written for",
        missing="a statement of actual knowledge",
    ),
    Requirement(
        source=HIPAA,
        place="(d) minimum necessary; (e) limited data set",
        asks="no more than is needed; a data use agreement for a limited data set",
        evidence="no record of a patient is among what the ledger releases: sums and histograms with noise only",
        missing="whether the columns a study reads inside the hospital are needed; any agreement",
    ),
    Requirement(
        source=AI_ACT,
        place="1 and 2(a) to (c)",
        asks="general description; development methods; design and key choices; architecture; computational resources",
        evidence="digests of the signed studies and of the programs that made each answer",
        missing="the descriptions themselves",
    ),
    Requirement(
        source=AI_ACT,
        place="2(d)",
        asks="training methods and training data: provenance, scope, selection, cleaning",
        evidence="the private mechanism of the training, with its parameters and the number of steps",
        missing="datasheets: the ledger holds no count and no statistic of patients, on purpose",
    ),
    Requirement(
        source=AI_ACT,
        place="2(g)",
        asks="validation and testing: data, metrics, reports that are dated and signed",
        evidence="how many noised evaluations were released, and conformance audits of the private step where recorded",
        missing="accuracy, robustness, discriminatory impact: those are in the run's own report",
    ),
    Requirement(
        source=AI_ACT,
        place="2(h), 3, 5",
        asks="cybersecurity measures; monitoring and limits; the risk management system of Article 9",
        evidence="tamper evidence of this ledger; refusals and interrupted work; the assumptions listed here",
        missing="poisoning and other attacks on the model; risk management as a whole",
    ),
    Requirement(
        source=AI_ACT,
        place="2(f), 6",
        asks="pre-determined changes; changes through the lifecycle",
        evidence="every change of ε and of the site's policy, in order, and every version of the program by digest",
        missing="what changed in the model and why",
    ),
    Requirement(
        source=AI_ACT,
        place="4, 7 to 9",
        asks="fitness of the metrics; harmonised standards; declaration of conformity; post-market monitoring",
        evidence="none",
        missing="all of it",
    ),
    Requirement(
        source=NIST,
        place="section 2, the guarantee: ε, δ, unit of privacy, composition",
        asks="parameters stated with unit and neighbouring relation, over all releases together",
        evidence="all of it, recomputed from the entries, by blocks of patients and over the ledger's lifetime",
        missing="that two records of one person are recognised as one; that a person goes to one hospital only",
    ),
    Requirement(
        source=NIST,
        place="section 3, algorithms: correctness, utility, bias",
        asks="mechanisms that do what their proof assumes; accuracy; systemic, human and statistical bias",
        evidence="mechanism and parameters of every release; empirical audits of the training step where recorded",
        missing="utility and bias, above all for small groups of patients, whom noise hurts most",
    ),
    Requirement(
        source=NIST,
        place="section 4, deployment: trust model, implementation, side channels, access, data collection",
        asks="who is trusted with what; floating point, randomness, timing; who reaches the raw data",
        evidence="the trust model, and the digests of the program that ran",
        missing="timing and other side channels, access control, data collection: only seen on the hospital's premises",
    ),
)
