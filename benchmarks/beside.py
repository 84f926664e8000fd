"""What Presidio takes for texts that it is given on stdin; run by the Python of an environment that has it.

Its own rules for English and no model: the text is cut into words by spaCy's rules, and nothing names people or places.
Stdin holds a JSON list of `{"name", "text", "rounds"}`; stdout one of `{"name", "bytes", "rounds", "p50_ms", "p99_ms"}`
in milliseconds of CPU of the thread that searches.
"""

import json
import sys
import time
from typing import Any


def analyzer() -> Any:
    """Presidio without a model."""
    import spacy  # type: ignore[import-not-found]
    import tldextract  # type: ignore[import-not-found]
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry  # type: ignore[import-not-found]
    from presidio_analyzer.nlp_engine import SpacyNlpEngine  # type: ignore[import-not-found]

    # It asks the network for the list of public suffixes otherwise, at the first e-mail address.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    words = spacy.blank("en")
    words.max_length = 10**7
    engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
    engine.nlp = {"en": words}
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"])
    registry.remove_recognizer("SpacyRecognizer")  # the model's
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])


def measured(analyze: Any, name: str, text: str, rounds: int) -> dict[str, Any]:
    """Search it again and again."""
    took = []
    analyze(text=text, language="en")
    for _ in range(rounds):
        begun = time.thread_time()
        analyze(text=text, language="en")
        took.append((time.thread_time() - begun) * 1000)
    took.sort()
    p99 = took[int(len(took) * 0.99)]
    return {"name": name, "bytes": len(text.encode()), "rounds": rounds, "p50_ms": took[len(took) // 2], "p99_ms": p99}


def main() -> None:
    """Measure what stdin holds."""
    made = analyzer()
    json.dump([measured(made.analyze, **one) for one in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
