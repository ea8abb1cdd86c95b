#!/usr/bin/env python3
"""Score saved predictions against ground truth, without a model; --help explains the files.

python tools/score_predictions.py --task panoptic --gt GT.json --gt-dir DIR --pred P.json --output OUT.json
python tools/score_predictions.py --task instance --iou-type segm --gt GT.json --pred P.json --output OUT.json
python tools/score_predictions.py --task semantic --gt-dir DIR --pred-dir DIR --classes names.txt --output OUT.json
python tools/score_predictions.py --task referring --gt GT.json --pred P.json --output OUT.json
"""

from openworldsam.evaluation.score import main

if __name__ == "__main__":
    main()
