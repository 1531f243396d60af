import pytest

from fingerprint_accel.data.layouts import LAYOUTS, LayoutError, Named, guess, names_layout
from fingerprint_accel.errors import UserError

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
    ("nist", "00002302_R_500_slap_13.png", Named("00002302", None, 500, slap=13)),
    ("fvc", "101_20240131.png", Named("101", 20240131)),
    ("folders", "Zoe\u0308/1.png", Named("Zo\u00eb", None)),  # decomposed, as macOS writes names
    ("socofing", "Real/1__M_Left_index_finger.BMP", Named("1_left_index", 0)),
    ("socofing", "Altered/Altered-Easy/1__M_Left_index_finger_CR.BMP", Named("1_left_index", 1)),
    ("socofing", "Altered/Altered-Hard/1__M_Left_index_finger_Zcut.BMP", Named("1_left_index", 9)),
]
WRONG = [
    ("fvc", "a_1.tif"),
    ("folders", "alone.png"),
    ("flx", "10.png"),
    ("flx", "a_0.png"),
    ("nist", "00002302_R_500_palm_25.png"),
    ("nist", "101_1.png"),
    ("socofing", "1__M_Left_toe_finger.BMP"),
]


@pytest.mark.parametrize(("layout", "path", "named"), CASES)
def test_names_are_read(layout, path, named):
    assert LAYOUTS[layout](path) == named


EXPRESSIONS = [
    (r"(?P<subject>\d+)_(?P<finger>[LR]\d)_(?P<impression>\d+)", "000/L/000_L0_3.bmp", Named("000_L0", 3)),  # CASIA
    (r"(?P<finger>\d+)_(?P<impression>\d+)", "first_session/1_1.jpg", Named("1", 1)),  # PolyU
    (r"(?:dp|pb)_(?P<subject>\d+)_(?P<finger>\d)_\d+", "0000/dp_0000_1_0.bmp", Named("0000_1", None)),  # MCYT
    (r"(?P<subject>\w+)_(?P<finger>\d+)_(?P<impression>\d+)", "smith_2_1.png", Named("smith_2", 1)),
    (r"(?P<subject>[^/]+)/(?P<position>\w+)-(?P<impression>\d+)", "anna/left_index-2.png", Named("anna_07", 2)),
    (r"(?P<subject>\d+)-(?P<position>R\d)@(?P<ppi>\d+)", "7-R2@1000.wsq", Named("7_02", None, 1000)),
    (r"(?P<subject>\d+)_slap(?P<position>\d+)", "7_slap14.wsq", Named("7", None, slap=14)),
    (r"(?P<finger>\d+)(?:_(?P<impression>\d+))?", "12.png", Named("12", None)),
]


@pytest.mark.parametrize(("expression", "path", "named"), EXPRESSIONS)
def test_expressions_read_names(expression, path, named):
    assert names_layout(expression)(path) == named


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(", "not a regular expression"),
        (r"(?P<impression>\d+)", "needs a group"),
        (r"(?P<fingr>\d+)", "fingr is unknown"),
    ],
)
def test_expressions_that_cannot_be_used(expression, said):
    with pytest.raises(UserError, match=said):
        names_layout(expression)


@pytest.mark.parametrize("name", ["7_25.png", "7_0x.png", "7_toe.png"])
def test_positions_that_are_no_finger(name):
    with pytest.raises(LayoutError, match="position"):
        names_layout(r"(?P<subject>\d+)_(?P<position>\w+)")(name)


@pytest.mark.parametrize("name", ["7_49.png", "7_5001.png"])
def test_resolutions_that_no_print_has(name):
    with pytest.raises(LayoutError, match="ppi"):
        names_layout(r"(?P<finger>\d+)_(?P<ppi>\d+)")(name)


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
