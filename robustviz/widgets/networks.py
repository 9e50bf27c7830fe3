"""The networks and images that a panel shows unless it is given others: those of digits."""

from functools import partial

from robustviz.data import digits
from robustviz.explorers import networks

usual_networks = partial(networks.usual_networks, "digits")
compared = partial(networks.compared, data="digits")
single = partial(networks.single, data="digits")
usual_images = partial(digits, "test")
