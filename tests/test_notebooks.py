"Every page runs from top to bottom, in a process of its own."
from pathlib import Path
import pytest, warm

pages = sorted((Path(__file__).parent.parent/'nbs').glob('*.ipynb'))

@pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)
def test_notebook(page): warm.run(warm.notebook, str(page))
