"Package metadata comes from settings.ini; the version from the package itself."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg, lib = ini['DEFAULT'], ini['DEFAULT']['lib_path']
lines = lambda key: [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]
version = re.search(r'^__version__ = "(.+?)"', (root/lib/'__init__.py').read_text(encoding='utf-8'), re.M)[1]

setup(
    version=version, license=cfg['license'], author=cfg['author'], keywords=cfg['keywords'].split(),
    classifiers=[f"Development Status :: {cfg['status']}", 'Intended Audience :: Science/Research', 'Intended Audience :: Developers',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Programming Language :: Python :: 3',
                 f"Programming Language :: Python :: {cfg['min_python']}"],
    packages=find_packages(include=[lib, f'{lib}.*']), package_data={lib: ['embedded/*', 'templates/*']}, include_package_data=False, zip_safe=False,
    install_requires=lines('requirements'),
    extras_require={key.removesuffix('_requirements'): lines(key) for key in cfg if key.endswith('_requirements')},
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=[f'{lib} = {lib}._modidx:d']),
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown')
