# Run by Python 2.7: starts the unmodified suite from the packages that `run` installed.
# usage: client.py PACKAGES SPEC
import site
import sys

packages, spec = sys.argv[1:]
site.addsitedir(packages)  # reads the .pth file that the namespace package `zope` needs
sys.argv = ["wstest", "--mode", "fuzzingclient", "--spec", spec]

from autobahntestsuite import wstest  # noqa: E402

wstest.run()
