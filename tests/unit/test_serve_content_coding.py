"""Request bodies that came compressed."""

import gzip

import pytest

from serve import content_coding
from serve.content_coding import TooLarge, UnknownCoding, decoded
from serve.status import Code, ServingError

PART = content_coding._PART_BYTES


@pytest.mark.parametrize("coding", [b"", b"identity", b" Identity , identity"])
def test_body_without_a_coding_stays_as_it_is(coding):
    assert decoded(b"abc", coding, 2) == b"abc"


@pytest.mark.parametrize("coding", [b"gzip", b"GZip", b"x-gzip", b"identity, gzip ,"])
def test_gzip_is_undone_by_each_of_its_names(coding):
    assert decoded(gzip.compress(b"abc"), coding, 3) == b"abc"


@pytest.mark.parametrize("coding", [b"br", b"deflate", b"gzip, gzip", b"gzip,br", b"gzipped", b"\xff"])
def test_other_codings_are_refused_by_name(coding):
    with pytest.raises(UnknownCoding) as refused:
        decoded(gzip.compress(b"abc"), coding, 9)
    assert repr(coding.decode("latin-1")) in str(refused.value)
    assert "in gzip, once" in str(refused.value)


@pytest.mark.parametrize("sizes", [(1, 1), (0, 3, 0), (5, PART * 3, 7), (1,) * 2000])
def test_members_are_joined_to_just_what_may_be(sizes):
    # Without repetition they are as long in gzip, so that members lie across the parts they are read in.
    contents = [bytes((at * at * 31 + at // 251) % 251 for at in range(size)) for size in sizes]
    body = b"".join(gzip.compress(content, 0, mtime=0) for content in contents)
    assert decoded(body, b"gzip", sum(sizes)) == b"".join(contents)
    with pytest.raises(TooLarge):
        decoded(body, b"gzip", sum(sizes) - 1)


def test_highest_limit_is_taken():
    assert decoded(gzip.compress(b"a") + gzip.compress(b"b"), b"gzip", 2**63 - 1) == b"ab"


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (b"junk", "Request body is not gzip, though its Content-Encoding says so"),
        (b"\0" * 8, "Request body is not gzip, though its Content-Encoding says so"),
        (b"{", "Request body in gzip ends too early"),
        (gzip.compress(b"abc", mtime=0)[:-1], "Request body in gzip ends too early"),
        (gzip.compress(b"abc", mtime=0) + b"\x1f", "Request body in gzip ends too early"),
    ],
)
def test_what_is_no_member_behind_the_first_is_refused(behind, message):
    with pytest.raises(ServingError, match=message) as refused:
        decoded(gzip.compress(b"[]") + behind, b"gzip", 100)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_members_have_a_limit_in_number():
    body = gzip.compress(b"", mtime=0)
    assert decoded(body * 10_000, b"gzip", 0) == b""
    with pytest.raises(ServingError, match="more than 10000 gzip members: join them"):
        decoded(body * 10_001, b"gzip", 0)
