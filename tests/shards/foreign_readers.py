"""Read a set with somebody else's loader, in whatever environment this file is run: prints JSON.

python foreign_readers.py webdataset|open_clip|timm SET SAMPLES [FIELD]
"""

import json
import sys
import types
from pathlib import Path


def shards(folder):
    return sorted(map(str, Path(folder).glob("shard-*.tar")))


def read_webdataset(folder, samples, field):
    import webdataset

    data = webdataset.WebDataset(shards(folder), shardshuffle=False).decode("rgb8")
    found = {}
    for sample in data:
        picture = next(value for name, value in sample.items() if name in ("png", "jpg"))
        found[sample["__key__"]] = [int(sample["cls"]), sample["json"]["label_n20"], list(picture.shape)]
    return {"version": webdataset.__version__, "samples": found}


def read_open_clip(folder, samples, field):
    import webdataset
    from open_clip_train import data as open_clip_data

    if field:
        # As docs/shards.md shows: open_clip's loader knows captions by the name txt alone.
        keep = open_clip_data.filter_no_caption_or_no_image

        def with_level(sample):
            sample["txt"] = json.loads(sample["json"])[field].encode()
            return keep(sample)

        open_clip_data.filter_no_caption_or_no_image = with_level

    first, last = shards(folder)[0], shards(folder)[-1]
    args = types.SimpleNamespace(
        train_data=f"{first[: -len('000000.tar')]}{{000000..{last[-10:-4]}}}.tar",
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=8,
        world_size=1,
        workers=1,
        distributed=False,
    )
    data = open_clip_data.get_wds_dataset(
        args, lambda image: image.size[0], True, tokenizer=lambda text: [text]
    )
    texts = [text for _, batch in data.dataloader for text in batch]
    return {"version": webdataset.__version__, "texts": texts}


def read_timm(folder, samples, field):
    import timm
    from timm.data import create_dataset

    last = shards(folder)[-1][-10:-4]
    labels = {}
    for key in (None, "label_n20"):
        data = create_dataset(
            "wds/",
            root=folder,
            split=f"shard-{{000000..{last}}}.tar|{samples}",
            is_training=False,
            batch_size=16,
            target_key=key,
        )
        labels[str(key)] = sorted(int(label) for _, label in data)
    return {"version": timm.__version__, "labels": labels}


if __name__ == "__main__":
    reader = {"webdataset": read_webdataset, "open_clip": read_open_clip, "timm": read_timm}[sys.argv[1]]
    print(json.dumps(reader(sys.argv[2], int(sys.argv[3]), *sys.argv[4:] or [None])))
