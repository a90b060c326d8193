from attntut.anatomy.weight import *  # noqa: F403
from attntut.anatomy.weight import ATTENTION, BRANCH, BRANCH_OUT, FEED_FORWARD, PARTS, ROLES, STACKS  # noqa: F401
