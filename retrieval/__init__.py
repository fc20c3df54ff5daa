"""The evaluator: exact CMC and mAP, and whole backfilling curves, of (n, d) embeddings. It knows tensors only.

metrics = evaluate(embeddings, embeddings, labels)                        # same items: a query never retrieves itself
order = backfilling_order("distance", transformed=h_old, new=new)
curves = backfilling_curve(new, h_old, new, labels, orders={"distance": order}, cutoffs=cutoffs(len(new), 20))
curves["distance"].auc.to_json()
"""

from retrieval.calibration import Calibration, choose_calibration
from retrieval.evaluation import backfilling_curve, cutoffs, evaluate
from retrieval.groups import gap, gap_closed, gaps_along, gaps_to_json
from retrieval.orders.backfilling import ORDERS, backfilling_order
from retrieval.quality import order_gains, recall_of_nearest, retrieval_qualities, retrieval_quality, upgrade_quality
from retrieval.ranking.engine import Progress
from retrieval.representatives import EVEN_SPREAD, class_spread, place_representatives
from retrieval.results import BackfillingCurve, PerQuery, RetrievalMetrics, regret
from retrieval.risk_coverage import RiskCoverage, order_quality
from retrieval.two_fields import two_field_curve

__all__ = [
    "EVEN_SPREAD",
    "ORDERS",
    "BackfillingCurve",
    "Calibration",
    "PerQuery",
    "Progress",
    "RetrievalMetrics",
    "RiskCoverage",
    "backfilling_curve",
    "backfilling_order",
    "choose_calibration",
    "class_spread",
    "cutoffs",
    "evaluate",
    "gap",
    "gap_closed",
    "gaps_along",
    "gaps_to_json",
    "order_gains",
    "order_quality",
    "place_representatives",
    "recall_of_nearest",
    "regret",
    "retrieval_qualities",
    "retrieval_quality",
    "two_field_curve",
    "upgrade_quality",
]
