"The earlier place of what is in `self_supervised.data.images` and `self_supervised.data.cache`."
from .data.images import *
from .data.cache import *
from .data.images import image_exts, late_bar, report_unreadable, resized, to_8bit
from .data.cache import FileTransform, file_key
from .data import cache, images

__all__ = images.__all__+cache.__all__
