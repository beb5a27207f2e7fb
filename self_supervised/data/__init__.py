"Image files, their labels and texts, loaders, and images to try things with."
from .images import *
from .cache import *
from .tables import *
from .loaders import *
from .samples import *
from .images import image_exts, late_bar, reason_of, report_unreadable, resized, to_8bit
from .cache import FileTransform, file_key
from .tables import GivenLabel, image_labels, no_label_names
from .loaders import GatherDL, ReadItem, batch_labels, few_labels, is_class, label_list, label_vocab, labels_of, split_files
from .samples import fashion_vocab, read_idx
from . import cache, images, loaders, samples, tables

__all__ = [name for module in (images,cache,tables,loaders,samples) for name in module.__all__]
