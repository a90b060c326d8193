from attntut.anatomy.names import *  # noqa
