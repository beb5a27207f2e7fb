"Sphinx: what `make site` builds the site with."
from configparser import ConfigParser
from pathlib import Path

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parent.parent/'settings.ini')
cfg = cfg['DEFAULT']

project,author,release = cfg['lib_name'],cfg['author'],cfg['version']
copyright = author
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath','amsmath']
myst_heading_anchors = 3
suppress_warnings = ['myst.header','mystnb.unknown_mime_type','misc.highlighting_failure']
html_theme = 'furo'
html_title = project
html_static_path = ['_static']
html_css_files,html_js_files = ['site.css'],['site.js']
html_show_sourcelink = html_copy_source = False
