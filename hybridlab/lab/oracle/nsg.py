"""Network security groups and their rules."""

from __future__ import annotations

from hybridlab.lab.oracle import rules
from hybridlab.lab.oracle.errors import incorrect_state, invalid, limit_exceeded, missing
from hybridlab.lab.oracle.http import Answer, Call, Route, shown
from hybridlab.lab.oracle.network import BASE, Network
from hybridlab.lab.oracle.store import Json, Record, Store, timestamp
from hybridlab.lab.oracle.tags import check_tags

MAX_RULES = 120
MAX_RULES_A_CALL = 25
_TAGS = "displayName freeformTags:dict definedTags:dict"


class SecurityGroups:
    """The rules live in the group's hidden part: the API shows them by an operation of their own."""

    def __init__(self, store: Store, network: Network) -> None:
        self._store = store
        self._network = network

    def routes(self) -> list[Route]:
        groups = f"{BASE}/networkSecurityGroups"
        one = f"{groups}/{{id}}"
        listing = "compartmentId vcnId limit page displayName sortBy sortOrder lifecycleState"
        page = "limit page sortBy sortOrder"
        return [
            Route("GET", groups, self._list, listing),
            Route("POST", groups, self._create, body=f"compartmentId! vcnId! {_TAGS}", creates=True),
            Route("GET", one, lambda call: shown(self._group(call))),
            Route("PUT", one, self._update, body=_TAGS, target="id"),
            Route("DELETE", one, self._delete, target="id"),
            Route("GET", f"{one}/securityRules", self._list_rules, f"direction {page}"),
            Route("GET", f"{one}/vnics", self._list_vnics, page),
            Route("POST", f"{one}/actions/addSecurityRules", self._add, body="securityRules:list"),
            Route("POST", f"{one}/actions/updateSecurityRules", self._update_rules, body="securityRules:list"),
            Route("POST", f"{one}/actions/removeSecurityRules", self._remove, body="securityRuleIds:list"),
        ]

    def _group(self, call: Call) -> Record:
        return self._store.get("networksecuritygroup", call.ids["id"])

    def _list(self, call: Call) -> Answer:
        if "compartmentId" not in call.query and "vcnId" not in call.query:
            raise missing("compartmentId")
        if "compartmentId" in call.query:
            self._store.compartment(call.query["compartmentId"])
        if "vcnId" in call.query:
            self._store.get("vcn", call.query["vcnId"])
        items = self._store.select((r.body for r in self._store.of("networksecuritygroup")), call.query)
        page, headers = self._store.page_of(items, call.query)
        return Answer(page, headers=headers)

    def _create(self, call: Call) -> Answer:
        self._store.compartment(call.body["compartmentId"])
        self._store.get("vcn", call.body["vcnId"])
        check_tags(call.body)
        record = self._store.create("networksecuritygroup", call.body["compartmentId"], call.body, rules=[])
        return self._network.provision(record)

    def _update(self, call: Call) -> Answer:
        group = self._group(call)
        check_tags(call.body)
        self._store.change(group, **call.body)
        return shown(group)

    def _members(self, group: Record) -> list[Record]:
        return self._store.of("vnic", lambda r: group.id in r.body["nsgIds"])

    def _delete(self, call: Call) -> Answer:
        group = self._group(call)
        for vnic in self._members(group):
            raise incorrect_state(f"Network Security Group {group.id} is associated with {vnic.id} that is in use.")
        for other in self._store.of("networksecuritygroup", lambda r: r.id != group.id):
            if any(group.id in (rule.get("source"), rule.get("destination")) for rule in other.hidden["rules"]):
                raise incorrect_state(f"Network Security Group {group.id} is named by rules of {other.id}.")
        self._store.remove(group.id)
        return Answer(None, 204)

    def _list_vnics(self, call: Call) -> Answer:
        items: list[Json] = [
            {"vnicId": r.id, "resourceId": r.hidden["instance"], "timeAssociated": r.body["timeCreated"]}
            for r in self._members(self._group(call))
        ]
        page, headers = self._store.page_of(items, call.query)
        return Answer(page, headers=headers)

    # -- rules -----------------------------------------------------------------------------------------------------
    def _list_rules(self, call: Call) -> Answer:
        found: list[Json] = self._group(call).hidden["rules"]
        direction = call.query.get("direction")
        if direction not in (None, "INGRESS", "EGRESS"):
            raise invalid("direction must be INGRESS or EGRESS")
        items = [rule for rule in found if direction in (None, rule["direction"])]
        page, headers = self._store.page_of(self._store.select(items, {"sortOrder": "ASC", **call.query}), call.query)
        return Answer(page, headers=headers)

    def _checked(self, group: Record, call: Call) -> list[Json]:
        given = call.body.get("securityRules")
        if not given:
            raise missing("securityRules")
        if len(given) > MAX_RULES_A_CALL:
            raise invalid(f"securityRules: at most {MAX_RULES_A_CALL} in one request")
        known = self._store.of("networksecuritygroup", lambda r: r.body["vcnId"] == group.body["vcnId"])
        names = {r.id for r in known}
        checked = []
        for rule in given:
            ident = rule.pop("id", None) if isinstance(rule, dict) else None
            checked.append({**rules.group_rule(rule, names), **({"id": ident} if ident else {})})
        return checked

    def _add(self, call: Call) -> Answer:
        group = self._group(call)
        own: list[Json] = group.hidden["rules"]
        added = self._checked(group, call)
        if any("id" in rule for rule in added):
            raise invalid("securityRules: id is not a parameter of this operation")
        if len(own) + len(added) > MAX_RULES:
            raise limit_exceeded(["security-rules-per-network-security-group-count"])
        for rule in added:
            rule["id"] = rules.new_rule_id(r["id"] for r in (*own, *added) if "id" in r)
            rule["isValid"] = True
            rule["timeCreated"] = timestamp(self._store.now())
        own.extend(added)
        self._store.change(group)
        return Answer({"securityRules": added})

    def _update_rules(self, call: Call) -> Answer:
        group = self._group(call)
        own = {rule["id"]: rule for rule in group.hidden["rules"]}
        changed = self._checked(group, call)
        for rule in changed:
            if rule.get("id") not in own:
                raise invalid(f"securityRules: {group.id} has no rule {rule.get('id')}")
        for rule in changed:
            old = own[rule["id"]]
            own[rule["id"]] = {**rule, "isValid": True, "timeCreated": old["timeCreated"]}
        group.hidden["rules"] = list(own.values())
        self._store.change(group)
        return Answer({"securityRules": [own[rule["id"]] for rule in changed]})

    def _remove(self, call: Call) -> Answer:
        group = self._group(call)
        idents = call.body.get("securityRuleIds")
        if not idents:
            raise missing("securityRuleIds")
        known = {rule["id"] for rule in group.hidden["rules"]}
        for ident in idents:
            if ident not in known:
                raise invalid(f"securityRuleIds: {group.id} has no rule {ident}")
        group.hidden["rules"] = [rule for rule in group.hidden["rules"] if rule["id"] not in idents]
        self._store.change(group)
        return Answer(None, 204)
