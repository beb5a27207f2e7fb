"Packaging: everything it says about the project is read from `settings.ini`."
import re
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
readme,url = (root/"README.md").read_text(encoding="utf-8"),cfg["repo_url"].rstrip("/")
if url:                                                          # a package index has no files beside the README
    readme = re.sub(r"(!?)(\[[^][]*\]\()(?!\w+:|#)", lambda m: f"{m[1]}{m[2]}{url}/{'raw' if m[1] else 'blob'}/main/", readme)

setup(
    name=cfg["dist_name"], version=cfg["version"], description=cfg["description"],
    long_description=readme, long_description_content_type="text/markdown",
    author=cfg["author"], keywords=cfg["keywords"], license=cfg["license"], url=url,
    project_urls={"Source":url, "Issues":f"{url}/issues", "Changelog":f"{url}/blob/main/CHANGELOG.md"} if url else {},
    packages=find_packages(include=["self_supervised*"]), package_data={"self_supervised": ["py.typed", "commands.json"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points=dict(console_scripts=cfg["console_scripts"].split()),
)
