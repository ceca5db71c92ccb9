"""`spec.data`: rows, how they are split, and what they must be like."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.fields import LIVE, RETRAIN
from finetune_operator.api.rule import Node, Rule
from finetune_operator.api.types import OBJECT, Name, SpecModel

SLOTS: Final = ("train", "validation", "test")
ROWS: Final = ("spec.data.train", "spec.data.validation", "spec.data.test", "spec.data.mix[]")
DataSource = Annotated[str, Field(max_length=1024, pattern=rf"^((configmap|pvc)://{OBJECT}/|image:///|hf://|https://|s3://).+$")]
Percent = Annotated[int, Field(ge=0, le=100)]
Language = Annotated[str, Field(pattern="^[a-z]{2,3}$", max_length=3)]


class Source(SpecModel):
    """Rows of a data set."""

    source: Annotated[DataSource, RETRAIN] = Field(
        description="configmap://name/key, pvc://claim/path, image:///path, https://…, s3://bucket/key or hf://owner/name[@revision][/path]. "
        "JSON lines, a JSON array, CSV or Parquet, also compressed; a folder stands for its files."
    )
    format: Annotated[
        Literal["Auto", "Messages", "PromptCompletion", "InstructionInputOutput", "InputOutput", "Text", "Preference"] | None, RETRAIN
    ] = Field(default=None, description="Form of a row; Auto (default) tells it from the first rows. Of Text all is learnt.")
    secret_name: Annotated[Name | None, LIVE] = Field(
        default=None,
        description="Secret that opens an https:// or hf:// source (key `token`) or an s3:// one (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_REGION, AWS_ENDPOINT_URL, …); the pod that prepares the data alone gets it.",
    )


class Split(SpecModel):
    """Shares of train, validation and test, by content hash; they sum to 100."""

    train: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=100, description="Percent; default 80.")
    validation: Annotated[Percent | None, RETRAIN] = Field(default=None, description="Percent; default 10.")
    test: Annotated[Percent | None, RETRAIN] = Field(default=None, description="Percent; default 10.")
    seed: Annotated[int | None, RETRAIN] = Field(default=None, ge=0, le=2147483647, description="Default 17.")


class Quality(SpecModel):
    """What a row must be like, and how many bad ones are borne."""

    min_response_characters: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=0, le=100000, description="Of an answer, or of a Text; default 10; 1 where answers are a small set of labels."
    )
    max_tokens: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=1, le=1048576, description="Longest row; default 4000, never above maxSequenceLength."
    )
    on_too_long: Annotated[Literal["Drop", "Truncate", "Fail"] | None, RETRAIN] = Field(
        default=None, description="Default Drop. Truncate cuts what is behind the limit off; a Text into pieces, which are all learnt."
    )
    max_invalid_percent: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=0, le=100, description="Above it the run stops before training; default 5."
    )
    deduplicate: Annotated[bool | None, RETRAIN] = Field(default=None, description="Drop rows that are there twice; default true.")
    max_repetition_percent: Annotated[int | None, RETRAIN] = Field(
        default=None,
        ge=0,
        le=100,
        description="An answer (or Text) of fifty words and more, of whose word trigrams more are repeated, is invalid; default 80.",
    )
    near_duplicates: Annotated[Literal["Drop", "Keep"] | None, RETRAIN] = Field(
        default=None, description="Rows that are nearly like an earlier one, or like one of the test split; default Drop."
    )
    near_duplicate_percent: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=50, le=100, description="Share of word trigrams in common that makes a near-duplicate; default 80."
    )
    personal_data: Annotated[Literal["Warn", "Redact", "Fail"] | None, RETRAIN] = Field(
        default=None, description="What is done about e-mail addresses, telephone and card numbers, and keys; default Warn."
    )
    languages: Annotated[list[Language] | None, RETRAIN] = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="ISO 639 codes, as `en`. A row with a turn in another language is invalid; by default languages are not looked at.",
    )
    language_percent: Annotated[int | None, RETRAIN] = Field(
        default=None,
        ge=50,
        le=100,
        description="How sure it must be that a turn is in another language; default 90. Short turns rarely are.",
    )


class Mix(Source):
    """General data mixed in against forgetting."""

    percent: Annotated[int, RETRAIN] = Field(ge=1, le=100, description="So many rows for every hundred training rows of `train`.")


class Data(SpecModel):
    """Training data, and how it is checked and split."""

    train: Source
    validation: Source | None = Field(default=None, description="Else a share of `train`.")
    test: Source | None = Field(default=None, description="Else a share of `train`. Never seen by training.")
    split: Split | None = None
    quality: Quality | None = None
    mix: list[Mix] | None = Field(default=None, max_length=8, description="General data, mixed into the training rows.")


def _shares(split: Node) -> int:
    return int(split.get("train", 80)) + int(split.get("validation", 10)) + int(split.get("test", 10))


def _opened_by_secret(path: str) -> Rule:
    schemes = ("https://", "s3://", "hf://")
    cel = " || ".join(["!has(self.secretName)", *(f"self.source.startsWith('{scheme}')" for scheme in schemes)])
    message = f"belongs to a source of {', '.join(schemes)}; remove it"
    return Rule(path, "secretName", cel, message, lambda source: "secretName" not in source or source["source"].startswith(schemes))


RULES: Final = (
    Rule(
        "spec.data.quality", "languagePercent",
        "!has(self.languagePercent) || has(self.languages)",
        "says how sure a language must be, and no language is asked for: set languages, or remove it",
        lambda quality: "languagePercent" not in quality or "languages" in quality,
    ),
    *(_opened_by_secret(path) for path in ROWS),
    Rule(
        "spec.data.split", "",
        "(has(self.train) ? self.train : 80) + (has(self.validation) ? self.validation : 10) + (has(self.test) ? self.test : 10) == 100",
        "train, validation and test must sum to 100 (unset they are 80, 10 and 10)",
        lambda split: _shares(split) == 100,
    ),
)  # fmt: skip
