import pytest

from fingerprint_accel.data.layouts import LAYOUTS, LayoutError, Named, guess

CASES = [
    ("fvc", "101_1.tif", Named("101", 1)),
    ("fvc", "DB1_B/101_1.tif", Named("DB1_B/101", 1)),
    ("folders", "anna/left/any.png", Named("anna/left", None)),
    ("flx", "a/b/10_9.png", Named("10", 9)),
    ("flx", "010_01.png", Named("10", 1)),
    ("flx", "f0001_02.png", Named("1_2", 0)),
    ("flx", "s0001_02.png", Named("1_2", 1)),
    ("nist", "x/00002302_R_500_roll_01.png", Named("00002302_01", None, 500)),
    ("nist", "00002302_H_1000_palm_10.png", Named("00002302_10", None, 1000)),
    ("nist", "00001000_roll_500_01.png", Named("00001000_01", None, 500)),  # SD300
    ("nist", "00001000_plain_1000_12.png", Named("00001000_06", None, 1000)),  # plain left thumb
    ("nist", "00002223_01_dryrun-A_variable_roll_03.png", Named("00002223_03", None, 0)),  # SD301
    ("nist", "00002303_A_roll_04.png", Named("00002303_04", None, 0)),  # SD302a
    ("socofing", "Real/1__M_Left_index_finger.BMP", Named("1_left_index", 0)),
    ("socofing", "Altered/Altered-Easy/1__M_Left_index_finger_CR.BMP", Named("1_left_index", 1)),
    ("socofing", "Altered/Altered-Hard/1__M_Left_index_finger_Zcut.BMP", Named("1_left_index", 9)),
]
WRONG = [
    ("fvc", "a_1.tif"),
    ("folders", "alone.png"),
    ("flx", "10.png"),
    ("flx", "a_0.png"),
    ("nist", "00002302_R_500_slap_13.png"),
    ("nist", "101_1.png"),
    ("socofing", "1__M_Left_toe_finger.BMP"),
]


@pytest.mark.parametrize(("layout", "path", "named"), CASES)
def test_names_are_read(layout, path, named):
    assert LAYOUTS[layout](path) == named


@pytest.mark.parametrize(("layout", "path"), WRONG)
def test_other_names_have_a_reason(layout, path):
    with pytest.raises(LayoutError):
        LAYOUTS[layout](path)


def test_altered_versions_are_different_impressions():
    levels = ("Easy", "Medium", "Hard")
    paths = [
        f"Altered-{level}/7__F_Right_thumb_finger_{kind}.BMP" for level in levels for kind in ("CR", "Obl", "Zcut")
    ]
    assert [LAYOUTS["socofing"](path).impression for path in paths] == list(range(1, 10))


def test_guess_names_the_layout_that_fits():
    assert guess(["101_1.tif", "102_8.tif"])[0] == "fvc"
    assert guess(["Real/1__M_Left_index_finger.BMP"])[0] == "socofing"
