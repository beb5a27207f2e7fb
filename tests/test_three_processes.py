"As test_distributed with two, on the processor; in a file of its own, so that the two can run side by side."
import pytest, warm
from test_distributed import RUNS, VARIANTS, assert_one, fit_all

@pytest.fixture(scope='module')
def three(tmp_path_factory):
    path = tmp_path_factory.mktemp('three')
    warm.group(fit_all, path, RUNS+VARIANTS, n=3)
    return path

@pytest.mark.parametrize('name', RUNS+VARIANTS)
def test_three_processes_are_one(name, three): assert_one(name, three, 3)
