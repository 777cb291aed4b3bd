"""From what the user has to a checked, split table of images, and from the table to pixels.

    sources     folders, tables (listings) and archives  ->  a table with a row for every file
    names       what people call classes and parts
    checks      every file is opened once (parallel, duplicates)  ->  the problems, and the images without them
    splits      the parts train, validation and test
    tables      images.csv
    reading     one file  ->  RGB, brought to one size
    stores      arrays on disk, larger than memory, checked, the least recently used ones deleted
    augmentation  random variants of images
    batches     an array in memory or in a store  ->  batches for `fit`
    pixels      the table ->  decoded once, stored, read back

The table is a pandas DataFrame with one row per image, sorted by path:

    path    str, relative to the repository's root where the file lies below it, else absolute
    label   str, the class: the name of the image's class folder, or what a table says, in composed Unicode
    split   str, "train", "validation" or "test"; "" while undecided
    group   str, images of one group (one patient, one video, near-duplicates) stay in one part; "" for none
    white   int, only if there are images of 16 bits: the value that becomes 255 in all of them
"""

from helpers.data.checks import check_images, exclude_problems, save_problems, summarize_problems
from helpers.data.pixels import load_pixels, shrink_pixels
from helpers.data.reading import find_white, read_pixels
from helpers.data.sources import find_images, open_data
from helpers.data.splits import check_split, split_images
from helpers.data.tables import count_images, encode_labels, load_images, save_images, stored_path

__all__ = [
    "check_images",
    "check_split",
    "count_images",
    "encode_labels",
    "exclude_problems",
    "find_images",
    "find_white",
    "load_images",
    "load_pixels",
    "open_data",
    "read_pixels",
    "save_images",
    "save_problems",
    "shrink_pixels",
    "split_images",
    "stored_path",
    "summarize_problems",
]
