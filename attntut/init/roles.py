from attntut.anatomy.view import Attention, Entry, ModelView, view  # noqa
