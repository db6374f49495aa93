"""Readers of CSV, Parquet and TFRecord files of any size, block by block."""
