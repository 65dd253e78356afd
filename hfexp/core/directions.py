"""The direction of a metric, lower or higher is better, as its name tells it."""

import re

_LOWER = re.compile(
    r"(^|[_/.-])(loss|logloss|nll|perplexity|entropy|deviance|brier(_score)?|[em]ce|errors?|error_rate|wer|cer|ter|eer"
    r"|r?mse|mae|s?mape|r?msle|fid|bpb|bpc)$"
)
_HIGHER = re.compile(
    r"(^|[_/.-])((accuracy|acc|f1|precision|recall|rouge|bleu|iou|map|hits|ndcg)([_@-]\w+|\d+|lsum|l|score)?"
    r"|(pr_|roc_)?auc|auroc|auprc|exact_match|em|r2|r2_score|pearsonr?|spearmanr?|correlation|mcc|kappa|sacrebleu"
    r"|meteor|chrf|dice|mrr|specificity|sensitivity)$"
)


def lower_is_better(name: str) -> bool | None:
    """Tell whether a metric is to be minimised; None if its name does not say.

    Args:
        name: with or without a prefix, e.g. `mse`, `final_eval_mse`, `test_mse`.
    """
    if _LOWER.search(name.lower()):
        return True
    return False if _HIGHER.search(name.lower()) else None
