"""Times as people write them: each form, the kind of a whole column, and what is refused."""

import datetime

import numpy as np
import polars as pl
import pytest

from data_pipelines.importing import timestamps
from synergen_jax.errors import UserError

NOW = 1_700_000_000
PARIS = datetime.timezone(datetime.timedelta(hours=1))


def read(values, asked="auto", pieces=1):
    """Kind, seconds and faults of a column that comes in so many pieces."""
    kind, value, wrong = moments(values, asked, pieces)
    return kind, [moment // 10**9 for moment in value], wrong


def moments(values, asked="auto", pieces=1):
    """The same with nanoseconds since 1970."""
    column = values if isinstance(values, pl.Series) else pl.Series(values)
    census, parsed = timestamps.Census(NOW), []
    for rows in np.array_split(np.arange(len(column)), pieces):
        times = timestamps.parse(column.gather(rows))
        census.add(times, rows + 1)
        parsed.append(times)
    kind = census.decide(asked, "column time")
    times = timestamps.Times(*(np.concatenate(part) for part in zip(*parsed)))
    value, wrong = timestamps.moments(times, kind, census.latest, census.mixed(kind))
    return kind, value.tolist(), [timestamps.REASONS[i] for i in wrong]


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(
    "kind, size", [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)]
)
@pytest.mark.parametrize("form", [pl.Int64, pl.String])
def test_units_are_told_from_the_whole_column(kind, size, form, pieces):
    moments = [631_152_000, 1_234_567_890, NOW + 86_400]
    column = pl.Series([moment * size for moment in moments]).cast(form)
    assert read(column, pieces=pieces) == (kind, moments, [""] * 3)


@pytest.mark.parametrize(
    "text, moment",
    [
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T22:13:20", NOW),
        ("2023-11-14 22:13:20.999", NOW),
        ("2023-11-14 22:13:20 UTC", NOW),
        ("2023-11-15T00:13:20+02:00", NOW),
        ("2023-11-14T16:43:20-0530", NOW),
        ("2023-11-14T22:13:20+00", NOW),
        ("20231114T221320Z", NOW),
        ("2023-11-14 22:13", NOW - 20),
        ("2023-11-14", NOW - 80_000),
        ("2020-02-29T12:00:00Z", 1_582_977_600),
    ],
)
def test_iso(text, moment):
    assert read([text]) == ("iso", [moment], [""])


PARTS = [NOW * 10**9, NOW * 10**9 + 123_456_789]  # the second one with all that a nanosecond tells


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(
    "column, digits",  # how many digits of the second's billionths the form keeps
    [
        ([NOW * 10**3, NOW * 10**3 + 123], 3),
        ([NOW * 10**6, NOW * 10**6 + 123_456], 6),
        (PARTS, 9),
        ([f"{NOW}", f"{NOW}.123456789"], 9),
        ([f"{NOW}.0", f"{NOW}.12345678987"], 9),
        ([f"{NOW}000", f"{NOW}123.456789"], 9),
        ([f"{NOW}000000", f"{NOW}123456.789"], 9),
        ([float(NOW), NOW + 0.123456789], 6),
        ([NOW * 1e3, NOW * 1e3 + 123.456789], 6),
        (["1.7e9", "1.700000000123456789E9"], 6),
        (["2023-11-14T22:13:20Z", "2023-11-14T22:13:20.123456789Z"], 9),
        (["2023-11-14 22:13:20", "2023-11-14 22:13:20,12345"], 5),
        (["2023-11-14 22:13:20+00:00", "2023-11-14T23:13:20.123456789123+01:00"], 9),
        (pl.Series(PARTS).cast(pl.Datetime("ns")), 9),
        (pl.Series(PARTS).cast(pl.Datetime("ns", "Europe/Paris")), 9),
        (pl.Series(PARTS).cast(pl.Datetime("ns")).cast(pl.Datetime("us")), 6),
        (pl.Series(PARTS).cast(pl.Datetime("ns")).cast(pl.Datetime("ms")), 3),
    ],
)
def test_fractions_are_kept_as_far_as_they_are_given(column, digits, pieces):
    _, found, wrong = moments(column, pieces=pieces)
    assert wrong == ["", ""] and found[0] == PARTS[0]
    assert found[1] // 10 ** (9 - digits) == PARTS[1] // 10 ** (9 - digits)
    assert found[1] <= PARTS[1] or digits == 6  # a float64 may lie on either side


def test_moments_before_1970_are_cut_downwards():
    times = timestamps.parse(pl.Series(["1969-12-31T23:59:59.25Z", "-0.75"]))
    assert times.number.tolist() == [-1, -1] and times.fraction.tolist() == [250_000_000, 250_000_000]
    assert moments(["1969-12-31T23:59:59.25Z", "2023-11-14"])[2] == ["a time before 1970", ""]


@pytest.mark.parametrize("zone", ["+24:00", "-00:60", "+99", "CET", "Europe/Paris"])
def test_zones_that_there_are_not(zone):
    assert read(["2023-11-14T00:00Z", f"2023-11-14T00:00{zone}"])[2] == ["", "an unreadable time"]


def test_zones_that_were_not_written_are_counted():
    census = timestamps.Census(NOW)
    times = timestamps.parse(pl.Series(["2023-11-14", "2023-11-14T00:00:00Z", "2023-11-14 00:00:00", None]))
    census.add(times, np.arange(4))
    assert census.zoneless == 2 and census.count["iso"] == 3 and times.form[3] == timestamps.MISSING


def test_typed_columns():
    moment = datetime.datetime.fromtimestamp(NOW, PARIS)
    assert read(pl.Series([moment]).dt.convert_time_zone("Europe/Paris")) == ("iso", [NOW], [""])
    assert read([moment.astimezone(datetime.UTC).replace(tzinfo=None)]) == ("iso", [NOW], [""])
    assert read([datetime.date(2023, 11, 14)]) == ("iso", [NOW - 80_000], [""])
    assert read([NOW + 0.75, float("nan")]) == ("seconds", [NOW, 0], ["", "an unreadable time"])
    assert read(["1700000000.75", "1.7e9"]) == ("seconds", [NOW, NOW], ["", ""])
    with pytest.raises(UserError, match="cannot be read from a column of type Boolean"):
        read([True])


@pytest.mark.parametrize(
    "value, reason",
    [
        ("0", "time 0"),
        ("-5", "a time before 1970"),
        (str(NOW + 86_401), "a time in the future"),
        (str(NOW * 1000), "a time in the future"),
        ("2023-11-14", "an unreadable time"),
        ("yesterday", "an unreadable time"),
        ("99999999999999999999", "an unreadable time"),
        ("inf", "an unreadable time"),
    ],
)
def test_bad_values_with_a_given_unit(value, reason):
    assert read([str(NOW), value, str(NOW - 1)], "seconds")[2] == ["", reason, ""]


@pytest.mark.parametrize(
    "value, reason",
    [
        ("1970-01-01T00:00:00Z", "time 0"),
        ("1969-07-20T20:17:40Z", "a time before 1970"),
        ("2023-11-16", "a time in the future"),
        ("2023-02-30", "an unreadable time"),
        ("2023-11-14T25:00:00", "an unreadable time"),
        ("14/11/2023", "an unreadable time"),
    ],
)
def test_bad_values_beside_iso(value, reason):
    assert read(["2023-11-14", value])[::2] == ("iso", ["", reason])


def test_zeros_and_rubbish_do_not_hide_the_unit():
    kind, value, wrong = read(["0", "rubbish", "-1", str(NOW * 1000)])
    assert kind == "milliseconds" and value[3] == NOW
    assert wrong == ["time 0", "an unreadable time", "a time before 1970", ""]


@pytest.mark.parametrize(
    "values, message",
    [
        (
            [NOW, NOW, NOW * 1000],
            "times of several kinds: 2 like row 1 (1700000000, seconds); 1 like row 3 (1700000000000, milliseconds); "
            "say which is right with --time-unit seconds|milliseconds|microseconds|nanoseconds|iso",
        ),
        (["2023-11-14", str(NOW)], "several kinds: 1 like row 1 (ISO 8601); 1 like row 2 (1700000000, seconds); say"),
        ([100, 200], "what its numbers count cannot be told: 2 like row 1 (100, no time since 1990 in any unit); say"),
        ([NOW, NOW + 90_000], "1 like row 1 (1700000000, seconds); 1 like row 2 (1700090000, no time since 1990"),
        (["20231114"], "what its numbers count cannot be told: 1 like row 1 (20231114, no time"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
def test_what_cannot_be_told_is_asked(values, message, pieces):
    with pytest.raises(UserError) as raised:
        read(values, pieces=pieces)
    assert str(raised.value).startswith("column time: ") and message in str(raised.value)


def test_a_given_unit_that_fits_nothing_is_refused():
    with pytest.raises(UserError, match="as milliseconds all do: give --time-unit milliseconds"):
        read([NOW * 1000, NOW * 1000 + 5], "seconds")
    with pytest.raises(UserError, match="as seconds all do: give --time-unit seconds"):
        read([NOW], "milliseconds")
    assert read([100, 200], "seconds") == ("seconds", [100, 200], ["", ""])
    assert read([500], "milliseconds")[2] == ["time 0"]


def test_a_given_unit_does_not_move_times_of_another_one_to_1970():
    """Seconds read as milliseconds would lie in January 1970, and nobody would see it."""
    other = "a time of another unit"
    assert read([NOW * 1000, NOW, 5000], "milliseconds") == ("milliseconds", [NOW, 0, 5], ["", other, ""])
    assert read([NOW * 10**9, NOW * 1000, NOW], "nanoseconds")[2] == ["", other, other]
    assert read([str(NOW), str(NOW * 1000)], "seconds")[2] == ["", "a time in the future"]
    assert read([2 * 10**9, 5000], "milliseconds") == (
        "milliseconds",
        [2 * 10**6, 5],
        ["", ""],
    )  # since a start of its own
