from attntut.anatomy.places import *  # noqa
