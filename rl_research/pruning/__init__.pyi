from .places import prune_place as prune_place
from .plan import Pruned as Pruned, Rules as Rules
