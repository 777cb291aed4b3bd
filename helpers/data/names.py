"""What folders and tables call classes and parts."""

import re
import unicodedata

PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

PART_WORDS = {
    *PART_NAMES,
    *(name + what for name in PART_NAMES for what in ("set", "data", "images")),
    *("eval", "evaluation", "holdout", "fold", "folds"),
    *("labelled", "labeled", "unlabelled", "unlabeled", "pred", "predict", "prediction", "predictions"),
}
"""Words by which people call parts. A class may have such a name, too: a single one proves nothing."""


def find_words(name: str) -> set[str]:
    """Returns the words of a name, in lower case: my and test of my_test1, my-test or myTest."""
    return set(re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def unify_name(name: str) -> str:
    """Returns the name in composed Unicode (NFC): Macs decompose what others compose, and both look the same."""
    return unicodedata.normalize("NFC", name)


def fold_name(name: str) -> str:
    """Returns what two names share that differ only in case, spaces, underscores, trailing dots or width."""
    name = unicodedata.normalize("NFKC", name).casefold()
    shown = "".join(c for c in name if unicodedata.category(c) != "Cf" and c != "\ufe0f")  # nothing invisible
    return re.sub(r"[\s_]+|(?<=\w)-(?=\w)", " ", shown).strip(" .") or name
