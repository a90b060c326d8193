from attntut.anatomy.parameters import *  # noqa
