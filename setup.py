"Packaging: everything it says about the project is read from `settings.ini`."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

root = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(root/"settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {k.removesuffix("_requirements"): v.split() for k,v in cfg.items() if k.endswith("_requirements")}
extras["test"] += extras["distributed"] + extras["docs"]
extras["dev"] += extras["test"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    long_description=(root/"README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    author=cfg["author"], keywords=cfg["keywords"], license="Apache-2.0",
    packages=find_packages(include=["self_supervised*"]), package_data={"self_supervised": ["py.typed", "commands.json"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points=dict(console_scripts=cfg["console_scripts"].split()),
)
