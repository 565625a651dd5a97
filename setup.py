"""Lets pip build in a temporary folder: one in the checkout would stay, and its old files get into the next wheel."""

import tempfile

from setuptools import setup

with tempfile.TemporaryDirectory() as folder:
    setup(options={"build": {"build_base": folder}, "egg_info": {"egg_base": folder}})
