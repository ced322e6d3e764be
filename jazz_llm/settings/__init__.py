"""Settings from outside of the program: the environment and YAML -> arguments of the constructor; and back to plain data.

They are put one upon the other: MODEL_NAME and the like, the top of a YAML file, its section, the environment, arguments. Here
they are only brought into their types (``fields``); ``configure`` checks them, and its errors are told the place they are from.
"""

from .gathering import gathered
from .saving import plain, save
from .yaml_file import sections_of

__all__ = ["gathered", "plain", "save", "sections_of"]
