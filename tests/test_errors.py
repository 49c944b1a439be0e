"""Error messages strip URL queries, which may hold signatures."""

import pickle

import pytest

from pets.cli.exit_codes import print_error
from pets_core.errors import PetsError, safe_cause, without_queries

URL = "https://host:8/a/photo.jpg"


@pytest.mark.parametrize(
    "query", ["?X-Sig=se%2Bc/ret%3D&a=b", "?secret", "?a=secret?b", "?se'cret"]
)
@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{}: its md5 is",
        "{} does not exist",
        "({}), and",
        "URL('{}')",
        "<{}>",
        '"{}".',
        "{}\nx",
    ],
)
def test_the_query_of_every_url_is_removed(text, query):
    twice = f"{text}, {text}"
    assert without_queries(twice.format(URL + query, URL + query)) == twice.format(URL, URL)


@pytest.mark.parametrize(
    "text", ["what? no", "s3://bucket/what?.jpg", f"is it {URL} ?a=b", f"{URL}, really?", ""]
)
def test_text_without_a_query_is_unchanged(text):
    assert without_queries(text) == text


def test_an_error_has_no_query_when_pickled_or_printed(capsys):
    error = pickle.loads(pickle.dumps(PetsError(f"{URL}?secret: does not exist")))
    assert (str(error), error.args) == (f"{URL}: does not exist", (f"{URL}: does not exist",))
    print_error(f"ValueError: {URL}?secret")
    assert capsys.readouterr().err == f"error: ValueError: {URL}\n"


def test_a_cause_with_a_query_is_dropped():
    plain, signed, behind = OSError("disk full"), OSError(f"{URL}?secret"), OSError("no")
    behind.__cause__ = signed
    assert safe_cause(plain) is plain
    assert safe_cause(signed) is safe_cause(behind) is None
