"""Readers of CSV, Parquet and TFRecord files of any size, block by block.

``headers`` looks at the columns of a file, ``csv_lines`` and ``tfrecords`` parse their formats, and
``blocks.Source`` reads one file or many, of any of the formats.
"""
