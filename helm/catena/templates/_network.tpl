{{/* Who may reach a room: those whose facts say that they call it, Prometheus, and the world at the gateway. */}}
{{- define "catena.ingress" -}}
{{- $callers := list -}}
{{- range $other, $fact := include "catena.facts" .root | fromYaml -}}
{{- if has $.name $fact.calls -}}{{- $callers = append $callers $other -}}{{- end -}}
{{- end -}}
{{- if $callers }}
- from:
    {{- range $callers }}
    - podSelector:
        matchLabels: {{- include "catena.selector" (dict "root" $.root "name" .) | nindent 10 }}
    {{- end }}
  ports: [{port: grpc, protocol: TCP}]
{{- end }}
{{- with .root.Values.networkPolicy.metricsFrom }}
- from: {{- toYaml . | nindent 4 }}
  ports: [{port: admin, protocol: TCP}]
{{- end }}
{{- if eq .name "gateway" }}
- ports: [{port: http, protocol: TCP}, {port: grpc, protocol: TCP}]
  {{- with .root.Values.networkPolicy.gatewayFrom }}
  from: {{- toYaml . | nindent 4 }}
    - podSelector:
        matchLabels: {{- include "catena.selector" (dict "root" $.root "name" "test") | nindent 10 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Whom a room may reach: names, the rooms it calls, the broker, its database, the collector, outside providers. */}}
{{- define "catena.egress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- if .facts.calls }}
- to:
    {{- range .facts.calls }}
    - podSelector:
        matchLabels: {{- include "catena.selector" (dict "root" $.root "name" .) | nindent 10 }}
    {{- end }}
  ports: [{port: 50051, protocol: TCP}]
{{- end }}
- ports: [{port: {{ .root.Values.networkPolicy.busPort }}, protocol: TCP}]
  {{- if .root.Values.nats.enabled }}
  to:
    - podSelector:
        matchLabels: {{- include "catena.selector" (dict "root" .root "name" "nats") | nindent 10 }}
  {{- else }}{{- with .root.Values.networkPolicy.busTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}{{- end }}
{{- if include "catena.sql.external" .root }}
- ports: [{port: {{ .root.Values.networkPolicy.sqlPort }}, protocol: TCP}]
  {{- with .root.Values.networkPolicy.sqlTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- if .root.Values.config.telemetry.otlp_endpoint }}
- ports: [{port: {{ .root.Values.networkPolicy.otlpPort }}, protocol: TCP}]
  {{- with .root.Values.networkPolicy.otlpTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- if eq .name "executor" }}{{- with .root.Values.networkPolicy.providersTo }}
- to: {{- toYaml . | nindent 4 }}
  ports: {{- toYaml $.root.Values.networkPolicy.providerPorts | nindent 4 }}
{{- end }}{{- end }}
{{- end -}}
